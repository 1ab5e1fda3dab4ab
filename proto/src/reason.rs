//! The closed set of reasons. Every dropped packet, refused record, refused request and refused command
//! ends in exactly one of them; the metric label, the log field and the text a person reads share its name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where a reason arises, for grouping in tables and in the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// A datagram from the network, before it is known to be a peer's.
    Datagram,
    /// A packet of an authenticated peer.
    Ingress,
    /// A packet of a local program.
    Egress,
    /// An HTTP request of an authenticated peer.
    Request,
    /// The key exchange inside the handshake tunnel.
    KeyExchange,
    /// A peer record at admission.
    Record,
    /// A manifest or update from the coordinator.
    Manifest,
    /// Enrolment and issuance.
    Issuance,
    /// The admin API and policy commands.
    Admin,
}

macro_rules! reasons {
    ($($(#[$group:meta])* $stage:ident { $($variant:ident = $name:literal, $text:literal;)* })*) => {
        /// Why something was dropped or refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $text] $variant,)*)*
        }

        impl Reason {
            /// Every reason, in the order of declaration.
            pub const ALL: &'static [Self] = &[$($(Self::$variant,)*)*];

            /// The stable name: metric label, log field, API value.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$variant => $name,)*)* }
            }

            /// One sentence for a person.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $($(Self::$variant => $text,)*)* }
            }

            /// Where it arises.
            #[must_use]
            pub const fn stage(self) -> Stage {
                match self { $($(Self::$variant => Stage::$stage,)*)* }
            }
        }
    };
}

reasons! {
    Datagram {
        DatagramTooShort = "datagram-too-short", "The datagram is shorter than its message type requires.";
        DatagramTooLong = "datagram-too-long", "The datagram is longer than its message type allows.";
        UnknownMessage = "unknown-message", "The datagram is of no message type that warren speaks.";
        ReservedBits = "reserved-bits", "Reserved bits that must be zero are set.";
        UnknownReceiver = "unknown-receiver", "The receiver index names no session of this node.";
        BadMac = "bad-mac", "The handshake message does not carry a valid first MAC for any key of this node.";
        CookieRequired = "cookie-required", "Under load: the sender must return a cookie first.";
        HandshakeRateLimited = "handshake-rate-limited", "Too many handshake messages from this source.";
        UnknownKey = "unknown-key", "The handshake's static key is not an admitted peer's; it got no answer.";
        BadHandshake = "bad-handshake", "The handshake message does not authenticate.";
        StaleHandshake = "stale-handshake", "The handshake message is older than one already seen from this peer.";
        LowOrderPoint = "low-order-point", "The handshake carries a public key of low order.";
        BadAuthentication = "bad-authentication", "The packet does not decrypt under its session's key.";
        Replayed = "replayed", "The packet's counter was seen before.";
        CounterTooOld = "counter-too-old", "The packet's counter is behind the replay window.";
        CounterExhausted = "counter-exhausted", "The packet's counter is beyond what a session may carry.";
        SessionExpired = "session-expired", "The session is past its time or message limit.";
        ProtectionMismatch = "protection-mismatch", "An application packet came through a tunnel that may carry control messages only.";
        ReceiveFailed = "receive-failed", "A device reported an error instead of a packet.";
        HandoverFull = "handover-full", "The queue to the worker that owns the session is full.";
    }
    Ingress {
        Malformed = "malformed", "The inner packet is not a well-formed IP packet.";
        SourceNotPeers = "source-not-peers", "The inner source address belongs to another peer or to none.";
        DestinationNotLocal = "destination-not-local", "The inner destination is not an address of this node.";
        CertificateExpired = "certificate-expired", "The peer's certificate has ended.";
        NoRule = "no-rule", "No rule admits this source to this port.";
        DeniedByRule = "denied-by-rule", "A deny rule holds.";
        RequireFailed = "require-failed", "A require rule does not hold.";
        NoService = "no-service", "Nothing is declared at this port.";
        NotAReply = "not-a-reply", "The packet claims to belong to a flow that this node did not open.";
        UnknownFragment = "unknown-fragment", "The fragment's first part was not admitted.";
        TinyFragment = "tiny-fragment", "The first fragment is too short to show its ports.";
        OverlappingFragment = "overlapping-fragment", "The fragment overlaps one already seen.";
        UnsupportedHeader = "unsupported-header", "An IPv6 extension header or IP option that warren does not accept.";
        UnsupportedProtocol = "unsupported-protocol", "The inner packet is neither TCP, UDP nor ICMP.";
        IcmpUnsolicited = "icmp-unsolicited", "The ICMP error quotes no live flow of this peer.";
        IcmpForbidden = "icmp-forbidden", "The ICMP type is not let through a tunnel.";
        FlowTableFull = "flow-table-full", "The flow table is full and holds no idle flow to give up.";
        EvictedFlow = "evicted-flow", "A flow gave its place to a newer one: it was idle, or whoever opened it held more than the newcomer.";
        PolicyChanged = "policy-changed", "The flow was let in by an earlier policy that no longer holds.";
        PeerRevoked = "peer-revoked", "The peer's certificate, key or identity was revoked.";
        NotEnforceable = "not-enforceable", "The policy needs a term that this node cannot enforce yet.";
        NotReady = "not-ready", "The node has no verified policy yet.";
        CongestionMarked = "congestion-marked", "The network marked it as having met congestion, and its sender knows no marks.";
        DeliverFailed = "deliver-failed", "The TUN device did not take the packet.";
    }
    Egress {
        NotAttributed = "not-attributed", "The source address is no local workload's.";
        WrongIdentity = "wrong-identity", "The program is not of the instance whose address it used or was to hear for, or policy opens nothing between two instances of this host.";
        NoGrant = "no-grant", "No rule links the local workload to the destination.";
        NoPeer = "no-peer", "The destination is known but none of its certificates is in date.";
        NoEndpoint = "no-endpoint", "No UDP address of the peer is known.";
        QueueFull = "queue-full", "Too many packets wait for a session with this peer.";
        HandshakeTimeout = "handshake-timeout", "The peer did not answer the handshake.";
        KeyExchangeTimeout = "key-exchange-timeout", "The peer did not complete the key exchange.";
        PacketTooBig = "packet-too-big", "The packet does not fit the path.";
        SendFailed = "send-failed", "The UDP socket did not take the datagram.";
        LocalLoop = "local-loop", "The destination is the source's own address.";
        NotUnicast = "not-unicast", "The destination is a multicast, broadcast or link-local address.";
        Backpressure = "backpressure", "The worker's output is full until the shell has written it.";
        ShuttingDown = "shutting-down", "The node is stopping.";
    }
    Request {
        RequestMalformed = "request-malformed", "The request is not in the normal form in which requests are judged.";
        RequestNotMatched = "request-not-matched", "A rule admits the connection but not this request.";
        JwtMissing = "jwt-missing", "The request carries no token where a rule demands one.";
        JwtIssuer = "jwt-issuer", "The token is of another issuer than the rule demands.";
        JwtNotBound = "jwt-not-bound", "The token was issued to another workload than the one that sent it.";
        JwtClaim = "jwt-claim", "A claim of the token has none of the accepted values.";
    }
    KeyExchange {
        ExchangeMalformed = "exchange-malformed", "The key-exchange message does not parse.";
        ExchangeVersion = "exchange-version", "The peer speaks another version of the key exchange.";
        ExchangeCertificates = "exchange-certificates", "The two sides do not mean the same certificates.";
        ExchangeUnexpected = "exchange-unexpected", "The key-exchange message fits no exchange under way.";
        ExchangeReplaced = "exchange-replaced", "A crossed exchange of the smaller tunnel key stands instead.";
        PlainPeerControl = "plain-peer-control", "A plain WireGuard peer sent a control message.";
    }
    Record {
        RecordTooLarge = "record-too-large", "The peer record is over its size limit.";
        CertificateMalformed = "certificate-malformed", "The certificate does not parse.";
        CertificateAlgorithm = "certificate-algorithm", "The certificate uses an algorithm outside the profile.";
        CertificateIdentity = "certificate-identity", "The certificate does not carry exactly one SPIFFE ID of the expected form.";
        WrongTrustDomain = "wrong-trust-domain", "The certificate belongs to another trust domain.";
        UntrustedIssuer = "untrusted-issuer", "The certificate does not chain to a root of its trust domain.";
        CertificatePurpose = "certificate-purpose", "The certificate lacks the purpose it is used for.";
        CertificateProfile = "certificate-profile", "The certificate breaks the profile of its kind.";
        CertificateLifetime = "certificate-lifetime", "The certificate lives longer than the mesh allows.";
        CertificateNotYetValid = "certificate-not-yet-valid", "The certificate is not valid yet; compare the clocks.";
        CertificateEnded = "certificate-ended", "The certificate's validity is over.";
        AddressOutsidePrefix = "address-outside-prefix", "An overlay address lies outside the mesh's prefix.";
        AddressClaimedTwice = "address-claimed-twice", "Two records claim the same overlay address; both are refused.";
        AddressIsLocal = "address-is-local", "The record claims an address of this node.";
        KeyLowOrder = "key-low-order", "The tunnel key is of low order.";
        KeyClaimedTwice = "key-claimed-twice", "Two identities claim the same tunnel key; both are refused.";
        KeyIsLocal = "key-is-local", "The record claims a tunnel key of this node.";
        BindingMismatch = "binding-mismatch", "The record's certificates do not belong to the same instance.";
        Revoked = "revoked", "The certificate, key, instance, node, identity or issuer is revoked.";
        NotLinked = "not-linked", "No rule lets the two talk in either direction.";
        MeshStale = "mesh-stale", "The last signed heartbeat is too old to admit a new peer.";
    }
    Manifest {
        FrameTooLarge = "frame-too-large", "A frame is over its size limit.";
        FrameMalformed = "frame-malformed", "A frame does not decode.";
        FrameUnexpected = "frame-unexpected", "A frame came where the protocol does not allow it.";
        VersionUnsupported = "version-unsupported", "The other side speaks another protocol version.";
        ManifestSignature = "manifest-signature", "The manifest's signature does not verify.";
        ManifestSigner = "manifest-signer", "The manifest's signer is not certified by a root this node holds.";
        ManifestWrongNode = "manifest-wrong-node", "The manifest was made for another node.";
        ManifestRolledBack = "manifest-rolled-back", "The manifest is older than the one in force.";
        ManifestExpired = "manifest-expired", "The manifest is past its not-after.";
        ManifestIncomplete = "manifest-incomplete", "An object named by the manifest is missing.";
        ManifestDigest = "manifest-digest", "An object does not have the digest that the manifest names.";
        ManifestSurplus = "manifest-surplus", "An object is not named by the manifest.";
        ReaderTooOld = "reader-too-old", "An object needs a newer warren than this one.";
        PolicyInvalid = "policy-invalid", "The policy documents do not compile.";
        ScopeExceeded = "scope-exceeded", "The update is larger than a node may hold.";
        StateCorrupt = "state-corrupt", "A state file is damaged.";
    }
    Issuance {
        TokenUnknown = "token-unknown", "The join token is not known; it may have been removed.";
        TokenExpired = "token-expired", "The join token is past its lifetime.";
        TokenUsed = "token-used", "The join token has been used up.";
        TokenMalformed = "token-malformed", "The join token is misspelt or cut off.";
        AttestorUnknown = "attestor-unknown", "No attestor of that name is configured.";
        EvidenceMalformed = "evidence-malformed", "The evidence is not of the form that the attestor judges.";
        EvidenceAlgorithm = "evidence-algorithm", "The evidence is signed with another algorithm than its key is for.";
        EvidenceSignature = "evidence-signature", "The evidence is not signed by a key that the attestor trusts.";
        EvidenceIssuer = "evidence-issuer", "The evidence is of another issuer, account or trust domain than the attestor's.";
        EvidenceAudience = "evidence-audience", "The evidence was made for somebody else.";
        EvidenceExpired = "evidence-expired", "The evidence is too old.";
        EvidenceNotYetValid = "evidence-not-yet-valid", "The evidence is not valid yet; compare the clocks.";
        EvidenceUnbound = "evidence-unbound", "The token is not bound to a running pod.";
        EvidenceUsed = "evidence-used", "The evidence already made another node.";
        NoRegistration = "no-registration", "No registration accepts the evidence.";
        RegistrationAmbiguous = "registration-ambiguous", "Several registrations accept the evidence.";
        IdentityNotAllowed = "identity-not-allowed", "The node may not hold this identity.";
        IdentityReserved = "identity-reserved", "The identity is reserved and can be held by no registration.";
        CsrMalformed = "csr-malformed", "The certificate request does not parse or uses another key type than P-256.";
        PossessionUnproven = "possession-unproven", "The requester did not prove that it holds the private key.";
        KeyInUse = "key-in-use", "The key is already bound to another identity or instance.";
        AddressesExhausted = "addresses-exhausted", "The overlay has no free address left.";
        NodeUnknown = "node-unknown", "The node is not registered.";
        NodeRevoked = "node-revoked", "The node was revoked.";
        PeerCertificateWrong = "peer-certificate-wrong", "The certificate presented is not one this endpoint accepts.";
        IssuerExpiring = "issuer-expiring", "The issuing certificate ends too soon to sign this one.";
        RenewalTooLate = "renewal-too-late", "The certificate ended more than the renewal grace ago.";
        NoWorkload = "no-workload", "The process that asks fits the selectors of no workload on this host.";
        CallerGone = "caller-gone", "The process that asked has ended, or cannot be told from another.";
        CoordinatorUnreachable = "coordinator-unreachable", "No coordinator answers at its addresses.";
    }
    Admin {
        NotAuthenticated = "not-authenticated", "No valid administrator credential was presented.";
        NotPermitted = "not-permitted", "The credential's role does not allow this.";
        NotFound = "not-found", "There is no such object.";
        Conflict = "conflict", "The object has changed since it was read.";
        InvalidField = "invalid-field", "A field of the request is not valid.";
        RequestTooLarge = "request-too-large", "The request is over its size limit.";
        RateLimited = "rate-limited", "Too many requests.";
        DeletesTooMuch = "deletes-too-much", "The change would delete more objects than was allowed.";
        NamespaceOwned = "namespace-owned", "The namespace belongs to another Set.";
        UnenforceablePolicy = "unenforceable-policy", "The policy needs a term that the nodes cannot enforce yet.";
        TestsFailed = "tests-failed", "A policy test failed.";
        StoreUnavailable = "store-unavailable", "The store cannot take the change; whether it was taken is not known.";
        DiskFull = "disk-full", "There is too little free disk space to accept a change.";
        Internal = "internal", "An internal error; see the coordinator's log.";
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no reason's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a reason")]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().copied().find(|reason| reason.name() == text).ok_or(UnknownReason)
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A refusal for two readers: a program takes the reason, a person the rest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{detail} ({reason})")]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// What was wrong, naming the field. Never a secret.
    pub detail: String,
    /// The next thing to type or to check; may be empty.
    pub hint: String,
}

impl Refusal {
    /// A refusal without a hint.
    #[must_use]
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), hint: String::new() }
    }

    /// Adds the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl From<Refusal> for crate::wire::Refusal {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason.name().to_owned(), detail: refusal.detail, hint: refusal.hint }
    }
}

impl From<crate::wire::Refusal> for Refusal {
    /// A reason of a newer version is kept as words under [`Reason::Internal`].
    fn from(raw: crate::wire::Refusal) -> Self {
        match raw.reason.parse() {
            Ok(reason) => Self { reason, detail: raw.detail, hint: raw.hint },
            Err(UnknownReason) => {
                Self { reason: Reason::Internal, detail: format!("{} ({})", raw.detail, raw.reason), hint: raw.hint }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_well_spelt_and_read_back() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        for reason in Reason::ALL {
            assert!(crate::spiffe::is_name(reason.name()), "{reason}");
            assert_eq!(reason.name().parse(), Ok(*reason));
            assert!(reason.text().ends_with('.'), "{reason}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
