//! What reads as a policy document, and what is refused with which words.

use proptest::prelude::*;

use super::super::fixtures::NOW;
use super::super::{CompiledPolicy, Mode, cases};
use super::*;

const EXAMPLE: &str = include_str!("example.yaml");
const EXAMPLE_REST: &str = include_str!("example_rest.yaml");

fn read(text: &str) -> Result<Documents, Vec<Diagnostic>> {
    Documents::from_files(&[SourceFile { name: "p.yaml".to_owned(), text: text.to_owned() }])
}

#[track_caller]
fn refused(text: &str, code: Code, line: u32, column: u32, words: &str) {
    let list = read(text).expect_err("this must not read");
    let found = list.iter().any(|finding| {
        finding.code == code && (finding.line, finding.column) == (line, column) && finding.to_string().contains(words)
    });
    assert!(found, "{code:?} at {line}:{column} with {words:?} not in {list:#?}");
}

/// A Service document with one line put in.
fn service(line: &str) -> String {
    format!(
        "kind: Service\nname: a/b\nports: {{ p: {{ port: 80, protocol: tcp }}, h: {{ port: 81, protocol: http }} }}\n{line}\n"
    )
}

#[test]
fn the_example_of_the_design_reads_and_every_object_keeps_its_text_and_line() {
    let documents = read(EXAMPLE).unwrap();
    let kinds: Vec<_> = documents.objects().map(|object| (object.kind, object.name.as_str())).collect();
    let expected = [
        (Kind::Set, "bank-team"),
        (Kind::Mesh, "bank.example"),
        (Kind::Group, "prod"),
        (Kind::Rules, "ops/scrape"),
        (Kind::Namespace, "bank"),
        (Kind::Service, "bank/banking-api"),
        (Kind::Tests, "guardrails"),
    ];
    assert_eq!(kinds, expected);
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for object in documents.objects() {
        let first = object.text.lines().next().unwrap();
        assert_eq!(lines[object.line as usize - 1], first, "{}", object.name);
        assert!(object.text.starts_with(&format!("kind: {}", object.kind)));
    }
}

#[test]
fn the_example_with_the_objects_it_names_compiles_and_passes_its_own_tests_but_is_not_enforceable_yet() {
    let documents = read(&format!("{EXAMPLE}---\n{EXAMPLE_REST}")).unwrap();
    let policy = CompiledPolicy::compile(&documents, Mode::Whole).unwrap();
    let after_audit = UnixTime(1_797_379_200);
    for result in cases::run_tests(&policy, after_audit) {
        assert!(result.passed, "{}: {}", result.name, result.message);
    }
    // Until then audit mode does let them through, and the proof does not hide it.
    let failed: Vec<_> = cases::run_tests(&policy, NOW).into_iter().filter(|result| !result.passed).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].name == "guardrails:dev-to-prod" && failed[0].message.contains("let in by audit mode"));
    let later: Vec<_> = policy.enforceable().unwrap_err().into_iter().map(|finding| finding.message).collect();
    for words in [
        "desk-reads needs http, jwt, when",
        "mesh:tokens needs jwt",
        "`target`",
        "`health`",
        "limits: per-caller",
        "routes: canary",
        "views: v2",
    ] {
        assert!(later.iter().any(|message| message.contains(words)), "{words:?} not in {later:#?}");
    }
}

#[test]
fn every_policy_in_the_book_reads_and_the_guides_compiles() {
    let guide = include_str!("../../../../docs/guides/policy.md");
    let reference = include_str!("../../../../docs/reference/policy.md");
    let blocks = |text: &'static str| text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    for block in blocks(guide).chain(blocks(reference)) {
        read(block).unwrap_or_else(|list| panic!("{list:#?}\n{block}"));
    }
    assert_eq!(blocks(reference).count(), 3);
    let policy = CompiledPolicy::compile(&read(blocks(guide).next().unwrap()).unwrap(), Mode::Whole).unwrap();
    assert_eq!(policy.enforceable(), Ok(()));
}

#[test]
fn an_object_read_again_alone_is_the_same_object_at_the_same_place() {
    let documents = read(EXAMPLE).unwrap();
    let objects: Vec<_> = documents.objects().cloned().collect();
    let again = Documents::from_objects(&objects).unwrap();
    assert!(again.objects().eq(documents.objects()));
    let wire: Vec<_> = objects.iter().map(wire::PolicyDocument::from).collect();
    let sent = Documents::from_wire(&wire).unwrap();
    assert!(sent.objects().eq(documents.objects()));
    let places = |documents: &Documents| documents.iter().map(|document| document.name_at).collect::<Vec<_>>();
    assert_eq!(places(&sent), places(&documents));
}

#[test]
fn yaml_that_two_readers_could_read_differently_is_refused_where_it_stands() {
    refused("kind: Group\nname: &a g\nmembers: [a/b]\n", Code::ForbiddenYaml, 2, 10, "anchors");
    refused("kind: Group\nname: g\nmembers: [*a]\n", Code::ForbiddenYaml, 3, 11, "aliases");
    refused("kind: Group\nname: !x g\nmembers: [a/b]\n", Code::ForbiddenYaml, 2, 10, "tags");
    refused("kind: Group\nname: g\nnamespaces: { <<: { a: b } }\n", Code::ForbiddenYaml, 3, 15, "merge keys");
    refused("kind: Group\nname: g\nmembers: []\n", Code::Empty, 3, 10, "the list is empty");
    refused("kind: Group\nname: g\nnamespaces: {}\n", Code::Empty, 3, 13, "the mapping is empty");
    refused("kind: Group\nname: g\nmembers:\n", Code::AmbiguousScalar, 3, 8, "value is missing");
    refused("kind: Group\nname: g\nmembers: [~]\n", Code::AmbiguousScalar, 3, 11, "null");
    refused("kind: Group\nname: g\nname: h\nmembers: [a/b]\n", Code::DuplicateKey, 3, 1, "`name` stands twice");
    refused("%YAML 1.1\n---\nkind: Group\n", Code::Syntax, 1, 1, "");
    refused("kind: Group\nname: g\nmembers: [a/b\n", Code::Syntax, 3, 10, "not valid YAML");
    refused("kind: Group\nname: g\nmembers: [a/b]\n---\n# nothing\n", Code::Empty, 5, 1, "the document is empty");
    refused("", Code::Empty, 1, 1, "the document is empty");
    refused("\u{feff}kind: Group\n", Code::ForbiddenYaml, 1, 1, "byte order mark");
    refused("kind: Group\nname: g\rmembers: [a/b]\n", Code::ForbiddenYaml, 2, 8, "carriage return without a line feed");
    refused("kind: Group\nname: \"g\u{2028}\"\n", Code::ForbiddenYaml, 2, 9, "the line separator U+2028");
    refused("kind: Group\nname: \"g\u{1b}[2J\"\n", Code::ForbiddenYaml, 2, 9, "the control character U+001B");
    let windows = read("kind: Group\r\nname: g\r\nmembers: [a/b]\r\n");
    assert!(windows.is_ok(), "lines that end with CR LF are lines");
}

#[test]
fn plain_words_that_older_yaml_reads_as_something_else_need_quotes() {
    for word in [
        "no",
        "No",
        "NO",
        "on",
        "OFF",
        "y",
        "Yes",
        "True",
        "FALSE",
        "null",
        "~",
        "0710",
        "0o17",
        "0x1F",
        "0b1",
        "1_000",
        "1:30",
        "190:20:30",
        "1.5",
        ".5",
        "1e3",
        "1.0e+3",
        "+12",
        ".inf",
        "-.INF",
        ".NaN",
        "2026-12-15",
        "2001-1-1",
        "=",
        "-0",
        "2001-12-14t21:59:43.10-05:00",
        "12e03",
        "0_7",
    ] {
        let text = format!("kind: Group\nname: g\nnamespaces: {{ env: {word} }}\n");
        refused(&text, Code::AmbiguousScalar, 3, 20, word);
        let quoted = format!(
            "kind: Mesh\nname: m\nissuers: {{ i: {{ issuer: \"{word}\", audiences: [a], jwks_url: \"https://a\" }} }}\n"
        );
        assert!(read(&quoted).is_ok(), "{word}");
    }
    for word in ["prod", "north", "offline", "10.0.0.1", "v1", "5432/tcp", "16384-32767", "a.b", "1a", "x86"] {
        assert!(matches!(yaml_text(word), yaml::Value::Text(_)), "{word}");
    }
}

fn yaml_text(word: &str) -> yaml::Value {
    let mut findings = Findings::default();
    let text = format!("k: {word}\n");
    let node = yaml::parse("f", Chunk { text: &text, line: 1 }, &mut findings).unwrap();
    let yaml::Value::Map(mut entries) = node.value else { panic!("a mapping") };
    entries.remove(0).1.value
}

#[test]
fn unknown_keys_name_the_nearest_valid_one() {
    refused(&service("alow: { x: { from: [any], ports: [p] } }"), Code::UnknownKey, 4, 1, "did you mean `allow`?");
    refused(&service("allow: { x: { form: [any], ports: [p] } }"), Code::UnknownKey, 4, 15, "did you mean `from`?");
    refused(&service("allow: { x: { form: [any], ports: [p] } }"), Code::MissingKey, 4, 13, "needs the key `from`");
    refused("kind: Servise\nname: a/b\n", Code::InvalidValue, 1, 7, "did you mean `Service`?");
    refused("name: a/b\n", Code::MissingKey, 1, 1, "no `kind`");
}

#[test]
fn what_comes_later_is_refused_and_not_ignored() {
    refused("kind: External\nname: x\n", Code::ComesLater, 1, 7, "comes later");
    refused(
        &service("allow: { x: { from: [\"spiffe://other/ns/a/sa/b\"], ports: [p] } }"),
        Code::ComesLater,
        4,
        22,
        "other trust domains",
    );
}

#[test]
fn a_device_is_an_identity_of_a_namespace_that_nobody_else_can_write_into() {
    let documents = read("kind: Peer\nname: laptop\nports: { ssh: { port: 22, protocol: tcp } }\n").unwrap();
    let Some(Body::Service(device)) = documents.iter().next().map(|document| &document.body) else {
        panic!("not an identity")
    };
    assert_eq!(device.workload.as_str(), "peer/laptop");
    refused("kind: Peer\nname: shop/laptop\n", Code::InvalidValue, 2, 7, "not a name for a Peer");
    refused("kind: Peer\nname: x\nruns: { a: { nodes: [any] } }\n", Code::UnknownKey, 3, 1, "no key `runs`");
    refused("kind: Service\nname: peer/laptop\n", Code::InvalidValue, 2, 7, "kind: Peer");
    refused("kind: Namespace\nname: peer\n", Code::InvalidValue, 2, 7, "need not be declared");
    let names_no_device = service("allow: { x: { from: [\"peer:Laptop\"], ports: [p] } }");
    refused(&names_no_device, Code::InvalidValue, 4, 22, "not a name for a Peer");
}

#[test]
fn rules_of_the_wrong_shape_are_told_what_was_expected() {
    refused(&service("allow: { x: { from: any, ports: [p] } }"), Code::InvalidValue, 4, 21, "write [any]");
    refused(&service("allow: { x: { from: [any], ports: [80/tcp] } }"), Code::InvalidValue, 4, 36, "use its name");
    refused(&service("allow: { x: { from: [web], ports: [p] } }"), Code::InvalidValue, 4, 22, "<namespace>/<name>");
    refused(&service("allow: { x: { from: [any], ports: [q] } }"), Code::UnknownName, 4, 36, "no port `q`");
    refused(&service("allow: { x: { from: [any] } }"), Code::MissingKey, 4, 13, "needs the key `ports`");
    refused(&service("deny: { x: { from: [any], to: [any] } }"), Code::UnknownKey, 4, 27, "no key `to`");
    refused(&service("require: { x: { } }"), Code::Empty, 4, 15, "");
    refused(&service("audit: { ports: all }"), Code::MissingKey, 4, 8, "`until`");
    refused(&service("audit: { until: \"2026-02-30\", ports: all }"), Code::InvalidValue, 4, 17, "must be a day");
    refused(
        &service("allow: { x: { from: [any], ports: [p] } }\ndeny: { x: { from: [any] } }"),
        Code::Duplicate,
        5,
        9,
        "twice",
    );
    refused(
        &service("allow: { x: { from: [any], ports: [h], http: [{ methods: [get] }] } }"),
        Code::InvalidValue,
        4,
        59,
        "GET",
    );
    refused(
        &service("allow: { x: { from: [any], ports: [h], http: [{ paths: [admin] }] } }"),
        Code::InvalidValue,
        4,
        57,
        "begins with `/`",
    );
    refused(
        &service("allow: { x: { from: [any], ports: [h], when: 'request.x.all(y, y)' } }"),
        Code::InvalidValue,
        4,
        46,
        "comprehensions",
    );
    refused(
        "kind: Namespace\nname: a\nallow: { x: { from: [any], ports: [1/tcp] } }\n",
        Code::UnknownKey,
        1,
        1,
        "include",
    );
    refused("kind: Namespace\nname: mesh\n", Code::InvalidValue, 2, 7, "cannot be called `mesh`");
    refused(
        "kind: Rules\nname: a/b\nallow: { x: { from: [any], ports: [p] } }\n",
        Code::InvalidValue,
        3,
        36,
        "ports are numbers",
    );
    refused(
        "kind: Rules\nname: a/b\nallow: { x: { from: [any], ports: [80] } }\n",
        Code::InvalidValue,
        3,
        36,
        "80/tcp",
    );
    refused("kind: Group\nname: g\nmembers: [\"group:x\"]\n", Code::InvalidValue, 3, 11, "no groups");
    refused("kind: Service\nname: Bank/api\n", Code::InvalidValue, 2, 7, "`Bank/api`");
    refused(
        "kind: Service\nname: a/b\nports: { x: { port: 80, protocol: tcp }, z: { port: \"79-81\", protocol: http } }\n",
        Code::Duplicate,
        3,
        42,
        "overlap",
    );
}

#[test]
fn an_exception_whose_date_does_not_read_is_not_an_exception_without_end() {
    let text = service("deny: { x: { from: [any], except: [{ from: [a/c], until: \"2027-13-01\" }] } }");
    refused(&text, Code::InvalidValue, 4, 58, "until must be a day");
}

#[test]
fn many_errors_are_told_at_once_over_documents_and_files() {
    let files = [
        SourceFile { name: "a.yaml".to_owned(), text: "kind: Group\nname: 1\n---\nkind: Nope\nname: x\n".to_owned() },
        SourceFile { name: "b.yaml".to_owned(), text: "kind: Group\nname: [\n---\nkind: Set\nname: s\n".to_owned() },
    ];
    let list = Documents::from_files(&files).unwrap_err();
    let places: Vec<_> = list.iter().map(|finding| (finding.file.as_str(), finding.line)).collect();
    for place in [("a.yaml", 2), ("a.yaml", 4), ("b.yaml", 4)] {
        assert!(places.contains(&place), "{place:?} not in {list:#?}");
    }
    assert!(list.iter().any(|finding| finding.file == "b.yaml" && finding.code == Code::Syntax));
}

#[test]
fn sizes_and_depth_are_bounded() {
    let long = format!("kind: Group\nname: g\nmembers: [{}]\n", "a/b, ".repeat(40_000));
    let list = read(&long).unwrap_err();
    assert_eq!(list[0].code, Code::TooLarge);
    let deep = format!("kind: {}x{}\n", "[".repeat(40), "]".repeat(40));
    assert!(read(&deep).is_err());
    let deep_blocks: String = (0..40).map(|depth| format!("{}k:\n", " ".repeat(depth))).collect();
    assert!(read(&deep_blocks).is_err());
    let many: String = (0..5000).map(|n| format!("k{n}: 1\n")).collect();
    assert!(read(&many).unwrap_err().iter().any(|finding| finding.code == Code::TooLarge));
    let huge = "#".repeat(MAX_FILE_BYTES + 1);
    assert_eq!(read(&huge).unwrap_err()[0].code, Code::TooLarge);
    let wrong: String = (0..1000).map(|n| format!("---\nkind: K{n}\nname: x\n")).collect();
    assert_eq!(read(&wrong).unwrap_err().len(), super::super::diagnostic::MAX_DIAGNOSTICS);
}

#[test]
fn an_object_declared_twice_names_the_other_place() {
    refused("kind: Namespace\nname: a\n---\nkind: Namespace\nname: a\n", Code::Duplicate, 5, 7, "p.yaml:2");
}

/// Fragments of policy text, so that random text gets past the first check often.
fn fragment() -> impl Strategy<Value = String> {
    let words = proptest::sample::select(vec![
        "kind: ",
        "Service",
        "Mesh",
        "Group",
        "Rules",
        "Tests",
        "Namespace",
        "Set",
        "\nname: ",
        "a/b",
        "a",
        "\n---\n",
        "\n",
        "  ",
        "ports: ",
        "{ ",
        " }",
        "[",
        "]",
        ", ",
        ": ",
        "- ",
        "allow:",
        "deny:",
        "require:",
        "from: ",
        "any",
        "http: ",
        "jwt: ",
        "when: ",
        "'request.path == \"/\"'",
        "\"",
        "'",
        "&a ",
        "*a",
        "!t ",
        "<<: ",
        "# c\n",
        "|\n",
        ">\n",
        "? ",
        "0710",
        "~",
        "\t",
        "\r\n",
        "...",
        "%",
        "until: ",
        "\"2026-12-15\"",
        "5432/tcp",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "é",
        "{}",
        "[]",
    ]);
    prop_oneof![8 => words.prop_map(str::to_owned), 1 => ".{0,6}"]
}

proptest! {
    #[test]
    fn no_text_panics_and_every_error_points_into_the_text(text in ".{0,300}") {
        if let Err(list) = read(&text) {
            let lines = u32::try_from(text.split('\n').count()).unwrap() + 1;
            prop_assert!(list.iter().all(|finding| finding.line >= 1 && finding.line <= lines && finding.column >= 1));
        }
    }

    #[test]
    fn no_policy_shaped_text_panics(parts in proptest::collection::vec(fragment(), 0..60)) {
        let text = parts.concat();
        if let Ok(documents) = read(&text) {
            let _ = CompiledPolicy::compile(&documents, Mode::Whole);
            let _ = CompiledPolicy::compile(&documents, Mode::Slice);
        }
    }

    #[test]
    fn a_damaged_example_never_panics(cut in 0..EXAMPLE.len(), length in 0_usize..40, put in "[ -~]{0,3}") {
        let mut text = EXAMPLE.as_bytes().to_vec();
        let end = (cut + length).min(text.len());
        text.splice(cut..end, put.bytes());
        let text = String::from_utf8_lossy(&text);
        if let Ok(documents) = read(&text) {
            let _ = CompiledPolicy::compile(&documents, Mode::Whole);
            let _ = CompiledPolicy::compile(&documents, Mode::Slice);
        }
    }
}
