//! The configuration file: what is read, and what is refused with its line.

use super::*;

fn file(text: &str) -> Result<Loaded, ConfigError> {
    parse(text, "warren.yaml", |_| None)
}

#[test]
fn the_reference_names_every_key_and_its_default() {
    let loaded = file(REFERENCE).expect("the reference is valid");
    assert_eq!(loaded.config, Config::default());
    for (key, origin) in KEYS.iter().zip(&loaded.origins) {
        assert_eq!(*origin, Origin::File, "{} is missing in the reference", key.name);
        assert!(REFERENCE.contains(&format!("[{}]", key.variable)), "{}", key.variable);
    }
}

#[test]
fn an_empty_or_commented_out_file_means_the_defaults() {
    for text in ["", "\n\n", "# nothing\n  # here\n"] {
        assert_eq!(file(text).expect("valid").config, Config::default());
    }
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_nearest_word() {
    let error = file("state_dir: /x\ntunnel:\n  prot: 1\n").expect_err("refused");
    assert!(error.to_string().starts_with("warren.yaml:3:3: unknown key \"prot\""), "{error}");
    assert_eq!(error.hint(), Some("did you mean \"port\"?"));
}

#[test]
fn a_wrong_value_is_refused_with_file_line_and_key() {
    for (text, place, word) in [
        ("tunnel:\n  mtu: 900\n", "warren.yaml:2", "tunnel.mtu"),
        ("tunnel:\n  port: 70000\n", "warren.yaml:2", "tunnel.port"),
        ("\nstate_dir: relative/path\n", "warren.yaml:2", "state_dir"),
        ("workload: Web\n", "warren.yaml:1", "workload"),
        ("workloads: [\"shop/web\"]\n", "warren.yaml:1", "has no selector"),
        ("workload_api: { socket: api.sock }\n", "warren.yaml", "workload_api.socket"),
        ("metrics:\n  address: \":9464\"\n", "warren.yaml:2", "metrics.address"),
        ("log:\n  level: info\n  format: xml\n", "warren.yaml:3", "log.format"),
        ("tunnel:\n  device: \"a/b\"\n", "warren.yaml:2", "tunnel.device"),
        ("tunnel:\n  suite: aes-256-gcm\n", "warren.yaml:2", "tunnel.suite"),
        ("control:\n  addresses: [\"host\"]\n", "warren.yaml:2", "control.addresses"),
        ("tunnel:\n  addresses: [\"10.0.0.1:5\"]\n", "warren.yaml:2", "tunnel.addresses"),
    ] {
        let error = file(text).expect_err(text).to_string();
        assert!(error.starts_with(place) && error.contains(word), "{error}");
    }
}

#[test]
fn a_value_of_another_shape_is_refused_with_its_key_and_the_shape() {
    for (text, place, words) in [
        ("workloads: \n  - identity: a\n", "warren.yaml:2", ["workloads: ", "SELECTOR"]),
        ("log: { level: info }\nworkloads:\n  - identity: a\n", "warren.yaml:3", ["workloads: ", "SELECTOR"]),
        ("tunnel:\n  device: w0\n  port: [1]\n", "warren.yaml:3", ["tunnel.port: ", "65535"]),
        ("state_dir:\n  a: b\n", "warren.yaml", ["state_dir: ", "path"]),
    ] {
        let error = file(text).expect_err(text).to_string();
        assert!(error.starts_with(place) && words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn text_that_is_not_this_document_is_refused_with_its_place() {
    for text in ["- a\n- b\n", "tunnel: 5\n", "state_dir: [a]\n", "a: {\n", "state_dir: /a\nstate_dir: /b\n"] {
        let error = file(text).expect_err(text);
        assert!(error.to_string().starts_with("warren.yaml"), "{error}");
    }
}

#[test]
fn the_environment_wins_over_the_file_and_says_so() {
    let loaded = parse("tunnel:\n  port: 1000\n  mtu: 1300\n", "warren.yaml", |name| {
        (name == "WARREN_TUNNEL_PORT").then(|| "2000".into())
    })
    .expect("valid");
    assert_eq!((loaded.config.tunnel.port, loaded.config.tunnel.mtu), (2000, 1300));
    let origins: Vec<_> = loaded.settings().into_iter().map(|setting| (setting.key, setting.origin)).collect();
    assert!(origins.contains(&("tunnel.port", "WARREN_TUNNEL_PORT")));
    assert!(origins.contains(&("tunnel.mtu", "file")));
    assert!(origins.contains(&("state_dir", "default")));
}

#[test]
fn a_bad_variable_is_refused_by_its_name() {
    let error = parse("", "warren.yaml", |name| (name == "WARREN_TUNNEL_PORT").then(|| "x".into())).expect_err("bad");
    assert!(error.to_string().starts_with("WARREN_TUNNEL_PORT: tunnel.port"), "{error}");
}

#[test]
fn a_missing_file_is_an_error_only_when_it_was_named() {
    let missing = Path::new("/nonexistent/warren.yaml");
    let error = load(Some(missing), |_| None).expect_err("named");
    assert!(error.to_string().contains("/nonexistent/warren.yaml"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("config reference")));
}

#[test]
fn addresses_are_host_and_port() {
    for good in ["a.example:1", "[::1]:65535", "10.0.0.1:8443"] {
        assert_eq!(host_and_port(good), Ok(()), "{good}");
    }
    for bad in ["", ":1", "a", "a:0", "a:65536", "[::1]", "::1:5:", "a b:1", "[a]:1", "-:x"] {
        assert!(host_and_port(bad).is_err(), "{bad}");
    }
}
