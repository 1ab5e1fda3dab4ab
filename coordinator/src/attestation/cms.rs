//! Signed data (CMS, RFC 5652; PKCS #7) as Amazon writes it: one signer, the content inside, no certificates, in BER with
//! lengths that may be left open. What comes out is the content that was signed and nothing that stood beside it.
//!
//! A reader of its own, because BER's open lengths are what DER readers refuse, and because of the whole of CMS one form is
//! wanted. Depth and size are bounded; no length is believed before it is seen to fit.

use aws_lc_rs::digest::{SHA256, digest};
use warren_proto::reason::Refusal;

use super::json::malformed;

/// How deep constructed values may stand within each other; the form wanted needs eight.
const MAX_DEPTH: usize = 16;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OCTETS_IN_PARTS: u8 = 0x24;
const OBJECT_ID: u8 = 0x06;
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_1: u8 = 0xa1;

const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4];
const SHA_256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const RSA_SHA_256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];

/// What is signed, and by what signature: RSA PKCS #1 with SHA-256.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signed {
    /// The content.
    pub(super) content: Vec<u8>,
    /// What the signature is over: the content, or attributes that hold the content's digest.
    pub(super) message: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

/// A value: its tag, and where its content stands.
#[derive(Clone, Copy)]
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
}

/// The next value and what follows it. A constructed value's length may be left open; its end is then two zero bytes.
fn next(bytes: &[u8], depth: usize) -> Option<(Value<'_>, &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    // Tags of several bytes have no place in the form wanted.
    if tag & 0x1f == 0x1f || depth == 0 {
        return None;
    }
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0x80 if tag & 0x20 != 0 => {
            let mut inside = rest;
            while !inside.starts_with(&[0, 0]) {
                (_, inside) = next(inside, depth - 1)?;
            }
            let length = rest.len() - inside.len();
            return Some((Value { tag, content: rest.get(..length)? }, inside.get(2..)?));
        }
        0..=0x7f => (usize::from(first), rest),
        // Four bytes of length are more than any document has.
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().try_fold(0_usize, |sum, byte| sum.checked_mul(256)?.checked_add(usize::from(*byte)))?, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((Value { tag, content }, rest))
}

/// Values one after the other, within a constructed one.
struct Values<'a> {
    rest: &'a [u8],
    depth: usize,
}

impl<'a> Values<'a> {
    const fn of(rest: &'a [u8]) -> Self {
        Self { rest, depth: MAX_DEPTH }
    }

    /// The next one.
    fn any(&mut self) -> Option<Value<'a>> {
        let (value, rest) = next(self.rest, self.depth)?;
        self.rest = rest;
        Some(value)
    }

    /// The next one, which must have this tag.
    fn tagged(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any().filter(|value| value.tag == tag).map(|value| value.content)
    }

    /// The next one if it has this tag.
    fn optional(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.rest.first() == Some(&tag) { self.tagged(tag) } else { None }
    }

    /// The values of the next one, which must have this tag.
    fn inside(&mut self, tag: u8) -> Option<Self> {
        let depth = self.depth.checked_sub(1)?;
        self.tagged(tag).map(|rest| Self { rest, depth })
    }

    /// Nothing may follow.
    fn end(self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }
}

/// An octet string, whole or in parts.
fn octets(value: Value<'_>, depth: usize) -> Option<Vec<u8>> {
    match value.tag {
        OCTETS => Some(value.content.to_vec()),
        OCTETS_IN_PARTS if depth > 0 => {
            let mut parts = Values::of(value.content);
            let mut whole = Vec::new();
            while !parts.rest.is_empty() {
                whole.extend(octets(parts.any()?, depth - 1)?);
            }
            Some(whole)
        }
        _ => None,
    }
}

/// The object identifier of an AlgorithmIdentifier.
fn algorithm<'a>(values: &mut Values<'a>) -> Option<&'a [u8]> {
    values.inside(SEQUENCE)?.tagged(OBJECT_ID)
}

/// Takes signed data apart. Nothing about the signature is verified but that it can only be over the content given back.
pub(super) fn parse(bytes: &[u8]) -> Result<Signed, Refusal> {
    let parts =
        read(bytes).ok_or_else(|| malformed("document: not signed data (PKCS #7) with one signer and its content"))?;
    let Parts { content, attributes, signature } = parts;
    let message = match attributes {
        None => content.clone(),
        Some(attributes) => {
            check_attributes(attributes, &content)?;
            // RFC 5652, 5.4: signed as the SET OF that they are, not under the tag that they are sent with.
            let mut message = vec![SET];
            message.extend(length(attributes.len()));
            message.extend(attributes);
            message
        }
    };
    Ok(Signed { content, message, signature: signature.to_vec() })
}

struct Parts<'a> {
    content: Vec<u8>,
    /// Signed attributes, without their tag and length.
    attributes: Option<&'a [u8]>,
    signature: &'a [u8],
}

fn read(bytes: &[u8]) -> Option<Parts<'_>> {
    let mut outer = Values::of(bytes);
    let mut info = outer.inside(SEQUENCE)?;
    outer.end()?;
    (info.tagged(OBJECT_ID)? == SIGNED_DATA).then_some(())?;
    let mut explicit = info.inside(CONTEXT_0)?;
    info.end()?;
    let mut data = explicit.inside(SEQUENCE)?;
    explicit.end()?;
    data.tagged(INTEGER)?;
    data.tagged(SET)?;
    let mut encapsulated = data.inside(SEQUENCE)?;
    (encapsulated.tagged(OBJECT_ID)? == DATA).then_some(())?;
    let mut wrapped = encapsulated.inside(CONTEXT_0)?;
    encapsulated.end()?;
    let content = octets(wrapped.any()?, 3)?;
    wrapped.end()?;
    // Certificates and revocation lists that come along are of no account: the certificate is configured.
    data.optional(CONTEXT_0);
    data.optional(CONTEXT_1);
    let mut signers = data.inside(SET)?;
    data.end()?;
    let mut signer = signers.inside(SEQUENCE)?;
    signers.end()?;
    signer.tagged(INTEGER)?;
    signer.any()?;
    (algorithm(&mut signer)? == SHA_256).then_some(())?;
    let attributes = signer.optional(CONTEXT_0);
    let signed_with = algorithm(&mut signer)?;
    (signed_with == RSA || signed_with == RSA_SHA_256).then_some(())?;
    let signature = signer.tagged(OCTETS)?;
    signer.optional(CONTEXT_1);
    signer.end()?;
    Some(Parts { content, attributes, signature })
}

/// The attributes must say that they are about data, and hold this very content's digest; each once.
fn check_attributes(attributes: &[u8], content: &[u8]) -> Result<(), Refusal> {
    let (mut types, mut digests) = (Vec::new(), Vec::new());
    let mut all = Values::of(attributes);
    let mut take = || {
        let mut attribute = all.inside(SEQUENCE)?;
        let (id, mut values) = (attribute.tagged(OBJECT_ID)?, attribute.inside(SET)?);
        attribute.end()?;
        match id {
            CONTENT_TYPE => types.push(values.tagged(OBJECT_ID)?),
            MESSAGE_DIGEST => digests.push(values.tagged(OCTETS)?),
            _ => {
                values.any()?;
            }
        }
        values.end()?;
        Some(all.rest.is_empty())
    };
    loop {
        match take() {
            Some(true) => break,
            Some(false) => {}
            None => return Err(malformed("document: a signed attribute that does not parse")),
        }
    }
    if types != [DATA] || digests != [digest(&SHA256, content).as_ref()] {
        return Err(malformed("document: its signed attributes are not about its content"));
    }
    Ok(())
}

/// A definite length, as DER writes it.
fn length(of: usize) -> Vec<u8> {
    let bytes = of.to_be_bytes();
    let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    match u8::try_from(of) {
        Ok(short) if short < 0x80 => vec![short],
        _ => [&[0x80 | u8::try_from(significant.len()).unwrap_or(0)], significant].concat(),
    }
}
