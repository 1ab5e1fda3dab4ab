//! The architecture as tests: dependency arrows, where unsafe code and boringtun may stand, one version of
//! each curve crate, what the documentation links to, and reference pages that equal the code.

#![allow(clippy::expect_used, clippy::panic, reason = "everything here is a test or a helper of one")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use warren_proto::Reason;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("netns-tests lies in the workspace").to_owned()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        // What other platforms need was not downloaded.
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Package id -> (name, version).
fn packages(metadata: &Value) -> BTreeMap<&str, (&str, &str)> {
    list(&metadata["packages"]).map(|p| (text(&p["id"]), (text(&p["name"]), text(&p["version"])))).collect()
}

/// The names of everything that `package` is built from, itself left out; build and test dependencies do
/// not count.
fn built_from<'a>(metadata: &'a Value, package: &str) -> BTreeSet<&'a str> {
    let packages = packages(metadata);
    let nodes: BTreeMap<_, _> = list(&metadata["resolve"]["nodes"]).map(|node| (text(&node["id"]), node)).collect();
    let first = packages.iter().find(|(_, (name, _))| *name == package).map(|(id, _)| *id);
    let mut waiting = vec![first.expect("a package of the workspace")];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        for dependency in list(&nodes[id]["deps"]) {
            let normal = list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null());
            let id = text(&dependency["pkg"]);
            if normal && seen.insert(id) {
                waiting.push(id);
            }
        }
    }
    seen.into_iter().map(|id| packages[id].0).collect()
}

/// Every Rust file that git would commit.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("readable").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("readable");
            (path.strip_prefix(root()).expect("inside").to_owned(), text)
        })
        .collect()
}

#[test]
fn dependency_arrows_point_one_way() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("warren-proto", [].as_slice()),
        ("warren-engine", &["warren-proto"]),
        ("warren", &["warren-engine", "warren-proto"]),
        ("warren-coordinator", &["warren-proto"]),
        ("warren-netns-tests", &["warren-proto"]),
        ("warren-launch", &[]),
    ]);
    for (package, allowed) in &allowed {
        for dependency in built_from(&metadata, package) {
            let ours = dependency == "warren" || dependency.starts_with("warren-");
            assert!(!ours || allowed.contains(&dependency), "{package} may not depend on {dependency}");
        }
    }
    let members = list(&metadata["workspace_members"]).count();
    assert_eq!(members, allowed.len(), "a new crate needs its arrows written down here");
}

#[test]
fn the_pure_crates_have_no_runtime_below_them() {
    let metadata = metadata();
    for package in ["warren-proto", "warren-engine"] {
        let below = built_from(&metadata, package);
        for banned in ["tokio", "mio", "socket2", "quinn", "hyper", "rtnetlink", "rustix", "sled", "async-std"] {
            assert!(!below.contains(banned), "{package} is built from {banned}");
        }
    }
}

#[test]
fn the_launcher_has_no_dependencies() {
    assert!(built_from(&metadata(), "warren-launch").is_empty());
}

#[test]
fn boringtun_is_named_in_its_wrapper_only() {
    for (path, source) in sources() {
        let wrapper = path.starts_with("node/engine/src/handshake") || path.ends_with("engine/src/handshake.rs");
        // The attacker and the oracle for interoperability are tests.
        let test = path.starts_with("netns-tests");
        assert!(wrapper || test || !source.contains("boringtun::"), "{} names boringtun", path.display());
    }
}

#[test]
fn the_mocked_clock_of_boringtun_is_nowhere_enabled() {
    let metadata = metadata();
    let packages = packages(&metadata);
    for node in list(&metadata["resolve"]["nodes"]) {
        if packages[text(&node["id"])].0 == "boringtun" {
            let features: Vec<_> = list(&node["features"]).map(text).collect();
            assert!(!features.contains(&"mock-instant"), "it would stop the clock of the real binaries: {features:?}");
            return;
        }
    }
    panic!("boringtun is not in the tree");
}

#[test]
fn there_is_one_version_of_each_curve_crate() {
    let metadata = metadata();
    for name in ["curve25519-dalek", "x25519-dalek", "ed25519-dalek"] {
        let versions: Vec<_> =
            packages(&metadata).into_values().filter(|(package, _)| *package == name).map(|(_, v)| v).collect();
        assert_eq!(versions.len(), 1, "{name}: {versions:?}");
    }
}

#[test]
fn unsafe_code_stands_in_the_device_modules_only() {
    for (path, source) in sources() {
        let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
        let uses = code.clone().any(|line| {
            ["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code"].iter().any(|form| line.contains(form))
        });
        let device = path.starts_with("node/src/data_plane");
        // bpf(2), which nothing wraps; the programs themselves are written beside it, safely.
        let programs = path.ends_with("node/src/host/bpf.rs");
        let counting_allocator = path.starts_with("node/engine/tests") || path.starts_with("node/engine/benches");
        let here = path.ends_with("tests/architecture.rs");
        assert!(!uses || device || programs || counting_allocator || here, "unsafe code in {}", path.display());
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    for (path, source) in sources() {
        let is_test = path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        if !is_test && source.lines().count() > 15 {
            assert!(source.starts_with("//!"), "{} does not open with //!", path.display());
        }
    }
}

#[test]
fn files_can_be_read_in_one_sitting() {
    for (path, source) in sources() {
        let lines = source.lines().count();
        let is_test = path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests");
        assert!(is_test || lines <= 1000, "{} has {lines} lines", path.display());
    }
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md"), root().join("SECURITY.md")];
    let mut waiting = vec![root().join("docs")];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    for page in pages {
        let source = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        for link in source.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            let target = page.parent().expect("a directory").join(file);
            assert!(target.exists(), "{} links to {link}, which is not there", page.display());
        }
    }
}

#[test]
fn files_that_the_architecture_names_are_there() {
    let mut named = 0;
    for page in ["docs/architecture.md", "docs/threat-model.md"] {
        let source = fs::read_to_string(root().join(page)).expect("readable");
        for word in source.split('`').skip(1).step_by(2) {
            let path = ["proto/", "node/", "coordinator/", "netns-tests/"].iter().any(|start| word.starts_with(start));
            if path {
                named += 1;
                assert!(root().join(word).exists(), "{page} names {word}, which is not there");
            }
            assert!(path || !word.ends_with(".rs"), "{page} names {word} without its directory");
        }
    }
    assert!(named > 40, "only {named} files are named: the pages were not read");
}

#[test]
fn the_reference_of_reasons_equals_the_code() {
    let mut page = String::from(
        "# Reasons\n\n\
         Every dropped packet, refused record and refused request ends in exactly one of these. The metric\n\
         label, the log field and the text shown to a person carry the same name. This page is made from\n\
         `proto/src/reason.rs`; `WARREN_BLESS=1 cargo test -p warren-netns-tests --test architecture` writes it anew.\n",
    );
    let mut stage = None;
    for reason in Reason::ALL {
        if stage != Some(reason.stage()) {
            stage = Some(reason.stage());
            page += &format!("\n## {:?}\n\n| reason | meaning |\n|---|---|\n", reason.stage());
        }
        page += &format!("| `{}` | {} |\n", reason.name(), reason.text());
    }
    let path = root().join("docs/reference/reasons.md");
    if std::env::var_os("WARREN_BLESS").is_some() {
        fs::write(&path, &page).expect("writable");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/reference/reasons.md is not what the code says; see its first lines");
}
