//! Object identifiers of warren's own certificate parts, all under one arc.
//!
//! The arc is the private enterprise number that RFC 5612 sets aside for documentation. Once a number of our own is
//! assigned, this is the one file that changes.

/// An object identifier in the two forms that libraries ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectId {
    /// The numbers, as certificate builders take them.
    pub arcs: &'static [u64],
    /// The DER content octets, without tag and length, as they stand in a certificate.
    pub der: &'static [u8],
}

macro_rules! under_the_arc {
    ($($(#[$doc:meta])* $name:ident = $branch:literal, $leaf:literal;)*) => {
        $($(#[$doc])* pub const $name: ObjectId = ObjectId {
            arcs: &[1, 3, 6, 1, 4, 1, 32473, $branch, $leaf],
            der: &[0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, $branch, $leaf],
        };)*

        #[cfg(test)]
        const ALL: &[ObjectId] = &[$($name),*];
    };
}

under_the_arc! {
    /// Extended key usage: the certificate may admit a tunnel.
    MESH_TUNNEL = 1, 1;
    /// Extended key usage: a node's own certificate, for the control link only.
    NODE = 1, 2;
    /// Extended key usage: a coordinator's certificate.
    COORDINATOR = 1, 3;
    /// Extended key usage: the key signs manifests and heartbeats.
    MANIFEST_SIGNER = 1, 4;
    /// Extension of a tunnel certificate: see [`super::TunnelBinding`].
    TUNNEL_BINDING = 2, 1;
    /// Certificate policy: the intermediate issues the mesh's certificates.
    MESH_ISSUING = 3, 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_every_identifier_are_the_same_identifier() {
        for oid in ALL {
            let parsed = x509_parser::der_parser::oid::Oid::from(oid.arcs).expect("well-formed");
            assert_eq!(parsed.as_bytes(), oid.der);
        }
    }
}
