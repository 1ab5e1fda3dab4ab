//! The configuration file as a JSON schema, for editors and for those who generate the file. Made from the parser's own
//! table of keys and from the reference's comments; a test holds it against the parser value by value.

use serde_json::{Map, Value, json};

use super::{Config, KEYS, Key, REFERENCE};

/// What a key's value looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// An absolute path.
    Path,
    /// An absolute path, or empty.
    OptionalPath,
    /// `<namespace>/<name>`, or empty.
    Workload,
    /// `<namespace>/<name> SELECTOR...`.
    Assignments,
    /// A network device's name.
    Device,
    /// A whole number from the first to the second.
    Number(u16, u16),
    /// True or false.
    Switch,
    /// An IP address with port, or empty.
    OptionalSocketAddress,
    /// IP addresses without port.
    Addresses,
    /// `host:port`.
    Endpoints,
    /// Any text that the parser understands.
    Text,
    /// One of these.
    Choice(&'static [&'static str]),
}

impl Form {
    fn schema(self) -> Value {
        match self {
            Self::Path => json!({ "type": "string", "pattern": "^/" }),
            Self::OptionalPath => json!({ "type": "string", "pattern": "^(/.*)?$" }),
            Self::Assignments => {
                let entry = "^[^/ ,]+/[^/ ,]+( +(uid=[0-9]+|unit=[^ ,]+|cgroup=/[^ ,]+|netns=/[^ ,]+))+$";
                json!({ "type": "array", "items": { "type": "string", "pattern": entry } })
            }
            Self::Workload => json!({ "type": "string", "pattern": "^([^/]+/[^/]+)?$" }),
            Self::Device => json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,15}$" }),
            Self::Number(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
            Self::Switch => json!({ "type": "boolean" }),
            Self::Addresses => {
                let item = json!({ "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }], "type": "string" });
                json!({ "type": "array", "items": item })
            }
            Self::Endpoints => json!({ "type": "array", "items": { "type": "string", "pattern": ":[0-9]{1,5}$" } }),
            Self::OptionalSocketAddress => {
                json!({ "type": "string", "pattern": "^([0-9a-fA-F.:%\\[\\]]+:[0-9]{1,5})?$" })
            }
            Self::Text => json!({ "type": "string" }),
            Self::Choice(words) => json!({ "type": "string", "enum": words }),
        }
    }

    /// The shape in words, for whoever wrote another one.
    pub(super) fn words(self) -> String {
        match self {
            Self::Path | Self::OptionalPath => "an absolute path".to_owned(),
            Self::Assignments => "a list of \"<namespace>/<name> SELECTOR...\", each one text".to_owned(),
            Self::Workload => "<namespace>/<name>".to_owned(),
            Self::Device => "a network device's name".to_owned(),
            Self::Number(least, most) => format!("a number from {least} to {most}"),
            Self::Switch => "true or false".to_owned(),
            Self::Addresses => "a list of IP addresses".to_owned(),
            Self::Endpoints => "a list of host:port".to_owned(),
            Self::OptionalSocketAddress => "an IP address with a port".to_owned(),
            Self::Text => "text".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
        }
    }

    /// The text that the parser knows, as the file writes it.
    fn value(self, text: &str) -> Value {
        match self {
            Self::Number(..) => text.parse::<u64>().map_or(Value::Null, Value::from),
            Self::Switch => Value::from(text == "true"),
            Self::Addresses | Self::Endpoints | Self::Assignments => super::list(text).map(Value::from).collect(),
            Self::Path
            | Self::OptionalPath
            | Self::OptionalSocketAddress
            | Self::Workload
            | Self::Device
            | Self::Text
            | Self::Choice(_) => Value::from(text),
        }
    }
}

/// The schema of the whole file (JSON Schema 2020-12).
#[must_use]
pub fn schema() -> Value {
    let mut root = object("The configuration of a warren node");
    root.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    for key in &KEYS {
        insert(&mut root, key.name, property(key));
    }
    Value::Object(root)
}

fn property(key: &Key) -> Value {
    let mut property = key.form.schema();
    property["default"] = key.form.value(&(key.show)(&Config::default()));
    property["description"] = json!(description(key));
    property
}

fn object(title: &str) -> Map<String, Value> {
    let empty = json!({ "title": title, "type": "object", "additionalProperties": false, "properties": {} });
    match empty {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Puts a property where its dotted name says, with the objects on the way.
fn insert(root: &mut Map<String, Value>, name: &str, property: Value) {
    let Some(Value::Object(properties)) = root.get_mut("properties") else { return };
    match name.split_once('.') {
        None => drop(properties.insert(name.to_owned(), property)),
        Some((section, rest)) => {
            let inner = properties.entry(section).or_insert_with(|| Value::Object(object(section)));
            if let Value::Object(inner) = inner {
                insert(inner, rest, property);
            }
        }
    }
}

/// The reference's comment on a key: the one that names its variable.
fn description(key: &Key) -> String {
    let mark = format!("[{}]", key.variable);
    let mut comment: Vec<&str> = Vec::new();
    for line in REFERENCE.lines() {
        match line.trim().strip_prefix('#') {
            Some(text) => comment.push(text.trim()),
            None => {
                let text = comment.join(" ");
                if let Some((words, _)) = text.split_once(&mark) {
                    return words.trim().to_owned();
                }
                comment.clear();
            }
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    /// A file that sets this key alone to this value, as YAML's JSON.
    fn file(name: &str, value: &Value) -> String {
        let document = name.rsplit('.').fold(value.clone(), |inner, part| json!({ part: inner }));
        document.to_string()
    }

    fn is_taken(name: &str, value: &Value) -> bool {
        parse(&file(name, value), "warren.yaml", |_| None).is_ok()
    }

    fn at<'a>(schema: &'a Value, name: &str) -> &'a Value {
        name.split('.').fold(schema, |schema, part| &schema["properties"][part])
    }

    /// Every leaf's dotted name.
    fn leaves(schema: &Value, path: &str, found: &mut Vec<String>) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if inner["type"] == "object" {
                assert_eq!(inner["additionalProperties"], false, "{path}");
                leaves(inner, &path, found);
            } else {
                found.push(path);
            }
        }
    }

    #[test]
    fn the_schema_has_the_parsers_keys_and_no_other_each_with_its_meaning_and_default() {
        let schema = schema();
        let mut found = Vec::new();
        leaves(&schema, "", &mut found);
        let mut known: Vec<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        found.sort();
        known.sort();
        assert_eq!(found, known);
        for key in &KEYS {
            let property = at(&schema, key.name);
            assert!(!property["description"].as_str().unwrap_or_default().is_empty(), "{} is not described", key.name);
            assert!(is_taken(key.name, &property["default"]), "{}: its default is refused", key.name);
            let loaded = parse(&file(key.name, &property["default"]), "warren.yaml", |_| None).expect("taken");
            assert_eq!(loaded.config, Config::default(), "{}: its default is another", key.name);
        }
    }

    #[test]
    fn what_the_schema_allows_and_forbids_the_parser_allows_and_forbids() {
        let schema = schema();
        for key in &KEYS {
            let property = at(&schema, key.name);
            match key.form {
                Form::Number(least, most) => {
                    assert_eq!((&property["minimum"], &property["maximum"]), (&json!(least), &json!(most)));
                    assert!(is_taken(key.name, &json!(least)) && is_taken(key.name, &json!(most)), "{}", key.name);
                    assert!(!is_taken(key.name, &json!(u64::from(most) + 1)), "{}", key.name);
                    assert!(least == 0 || !is_taken(key.name, &json!(least - 1)), "{}", key.name);
                    assert!(!is_taken(key.name, &json!("many")), "{}", key.name);
                }
                Form::Switch => {
                    assert!(is_taken(key.name, &json!(true)) && is_taken(key.name, &json!(false)), "{}", key.name);
                    assert!(!is_taken(key.name, &json!("perhaps")), "{}", key.name);
                }
                Form::Choice(words) => {
                    assert!(words.iter().all(|word| is_taken(key.name, &json!(word))), "{}", key.name);
                    assert!(!is_taken(key.name, &json!("another")), "{}", key.name);
                }
                Form::Path => {
                    assert!(is_taken(key.name, &json!("/a/b")) && !is_taken(key.name, &json!("a/b")), "{}", key.name);
                }
                Form::OptionalPath => {
                    assert!(is_taken(key.name, &json!("/a/b")) && is_taken(key.name, &json!("")), "{}", key.name);
                    assert!(!is_taken(key.name, &json!("a/b")), "{}", key.name);
                }
                Form::OptionalSocketAddress => {
                    assert!(is_taken(key.name, &json!("127.0.0.1:9464")) && is_taken(key.name, &json!("[fd00::1]:1")));
                    assert!(is_taken(key.name, &json!("")) && !is_taken(key.name, &json!(":9464")), "{}", key.name);
                }
                Form::Assignments => {
                    let all = json!(["a/b uid=7", "a/c unit=c.service cgroup=/x/y netns=/run/netns/n"]);
                    assert!(is_taken(key.name, &all), "{}", key.name);
                    assert!(!is_taken(key.name, &json!(["a/b"])) && !is_taken(key.name, &json!("a/b uid=7")));
                }
                Form::Workload => {
                    assert!(is_taken(key.name, &json!("a/b")) && is_taken(key.name, &json!("")), "{}", key.name);
                    assert!(!is_taken(key.name, &json!("a")) && !is_taken(key.name, &json!("a/b/c")), "{}", key.name);
                }
                Form::Device => {
                    assert!(is_taken(key.name, &json!("warren0.1_-")), "{}", key.name);
                    assert!(!is_taken(key.name, &json!("a".repeat(16))) && !is_taken(key.name, &json!("a/b")));
                }
                Form::Addresses => {
                    assert!(is_taken(key.name, &json!(["192.0.2.1", "2001:db8::1"])), "{}", key.name);
                    assert!(!is_taken(key.name, &json!(["192.0.2.1:5"])) && !is_taken(key.name, &json!("192.0.2.1")));
                }
                Form::Endpoints => {
                    assert!(is_taken(key.name, &json!(["a.example:1", "[::1]:2"])), "{}", key.name);
                    assert!(!is_taken(key.name, &json!(["a.example"])), "{}", key.name);
                }
                Form::Text => assert!(is_taken(key.name, &json!("info,warren_node=debug")), "{}", key.name),
            }
        }
        assert!(!is_taken("tunnel.colour", &json!("blue")) && !is_taken("colour", &json!("blue")));
    }
}
