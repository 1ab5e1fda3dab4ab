//! JSON from strangers: whole or not at all. A name that stands twice in an object is refused, for two readers would take
//! two different values of it. Depth is bounded by the parser, size by whoever calls.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use warren_proto::admin::{Selector, SelectorValue};
use warren_proto::reason::{Reason, Refusal};

/// How deep below the top an object's values count as facts.
const MAX_DEPTH: usize = 4;

/// An object's members.
pub(super) type Object = BTreeMap<String, Json>;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Flag(bool),
    Number(i64),
    /// A number that is no 64-bit integer: never compared with anything.
    OtherNumber,
    Text(String),
    List(Vec<Json>),
    Object(Object),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Flag(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::OtherNumber, Json::Number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = Object::new();
        while let Some((name, value)) = members.next_entry::<String, Json>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands twice in an object"));
            }
        }
        Ok(Json::Object(object))
    }
}

/// The one object that `bytes` are. `what` is what the refusal calls them.
pub(super) fn object(what: &str, bytes: &[u8]) -> Result<Object, Refusal> {
    match serde_json::from_slice(bytes) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(malformed(format!("{what}: not a JSON object"))),
        // The parser's own words name a place, and may quote a name: nothing that is secret.
        Err(error) => {
            Err(malformed(format!("{what}: line {}, column {}: {}", error.line(), error.column(), kind(&error))))
        }
    }
}

fn kind(error: &serde_json::Error) -> &'static str {
    if error.to_string().contains("stands twice") { "a name stands twice in an object" } else { "not JSON" }
}

pub(super) fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::EvidenceMalformed, detail)
}

/// The text under `name`; a refusal that names it where it is missing or of another type.
pub(super) fn text<'j>(object: &'j Object, what: &str, name: &str) -> Result<&'j str, Refusal> {
    match object.get(name) {
        Some(Json::Text(text)) => Ok(text),
        Some(_) => Err(malformed(format!("{what}.{name}: not text"))),
        None => Err(malformed(format!("{what}.{name}: missing"))),
    }
}

/// The text under `name`, where it is there at all.
pub(super) fn optional_text<'j>(object: &'j Object, what: &str, name: &str) -> Result<Option<&'j str>, Refusal> {
    if object.contains_key(name) { text(object, what, name).map(Some) } else { Ok(None) }
}

/// Texts, whole numbers and flags as facts: a member of the object itself as `claim:<name>`, one further down as
/// `claim:` and its JSON pointer (RFC 6901). Members whose names are in `without` are left out at the top.
pub(super) fn facts(object: &Object, without: &[&str]) -> Vec<Selector> {
    let mut facts = Vec::new();
    for (name, value) in object.iter().filter(|(name, _)| !without.contains(&name.as_str())) {
        match scalar(value) {
            // A name that begins like a pointer is not taken for one.
            Some(value) if !name.starts_with('/') => facts.push(Selector { name: format!("claim:{name}"), value }),
            Some(_) => {}
            None => below(&mut facts, &pointer("", name), value, MAX_DEPTH),
        }
    }
    facts
}

fn below(facts: &mut Vec<Selector>, path: &str, value: &Json, depth: usize) {
    let Json::Object(object) = value else { return };
    for (name, value) in object {
        let path = pointer(path, name);
        match scalar(value) {
            Some(value) => facts.push(Selector { name: format!("claim:{path}"), value }),
            None if depth > 1 => below(facts, &path, value, depth - 1),
            None => {}
        }
    }
}

fn pointer(path: &str, name: &str) -> String {
    format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn scalar(value: &Json) -> Option<SelectorValue> {
    match value {
        Json::Flag(flag) => Some(SelectorValue::Flag(*flag)),
        Json::Number(number) => Some(SelectorValue::Number(*number)),
        Json::Text(text) => Some(SelectorValue::Text(text.clone())),
        Json::Null | Json::OtherNumber | Json::List(_) | Json::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Vec<String> {
        facts(&object("claims", text.as_bytes()).expect(text), &["iss"]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_that_stands_twice_is_refused_at_every_depth() {
        for text in
            [r#"{"a":1,"a":2}"#, r#"{"b":{"a":1,"a":1}}"#, r#"{"b":[{"a":1,"a":null}]}"#, r#"{"a":1,"\u0061":2}"#]
        {
            let refusal = object("claims", text.as_bytes()).expect_err(text);
            assert_eq!(refusal.reason, Reason::EvidenceMalformed);
            assert!(refusal.detail.contains("twice"), "{text}: {refusal}");
        }
    }

    #[test]
    fn what_is_no_single_object_is_refused() {
        for text in ["", "[]", "1", "{}{}", "{} x", "{\"a\":}", "\"{}\""] {
            assert_eq!(object("claims", text.as_bytes()).expect_err(text).reason, Reason::EvidenceMalformed);
        }
        let deep = "{\"a\":".repeat(5_000);
        assert!(object("claims", deep.as_bytes()).is_err(), "depth is bounded");
    }

    #[test]
    fn facts_keep_their_types_and_their_places_apart() {
        assert_eq!(
            shown(r#"{"iss":"x","a":"1","b":1,"c":true,"d":1.5,"e":null,"f":["x"]}"#),
            ["claim:a=1", "claim:b:=1", "claim:c:=true"]
        );
        assert_eq!(shown(r#"{"g":{"id":7,"x/y":"z"},"/g/id":"forged"}"#), ["claim:/g/id:=7", "claim:/g/x~1y=z"]);
        assert_eq!(shown(r#"{"a":{"b":{"c":{"d":{"e":1}}}}}"#), ["claim:/a/b/c/d/e:=1"]);
        assert!(shown(r#"{"a":{"b":{"c":{"d":{"e":{"f":1}}}}}}"#).is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(object) = object("claims", &bytes) {
                facts(&object, &[]);
            }
        }
    }
}
