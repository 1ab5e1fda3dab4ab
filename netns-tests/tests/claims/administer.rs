//! Administrators and their commands: who may do what, what each exit code means, what the log keeps.
//!
//! ```text
//!   coordinator   web-1 (once)
//!   ==========================
//! ```

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::mesh::{Answer, Mesh, words};

use super::{POLICY, WEB, claim};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("administer::the_first_run_token_is_good_once", first_run_once),
        claim("administer::a_viewers_token_reads_and_changes_nothing", viewer),
        claim("administer::an_author_who_has_not_seen_the_newest_revision_changes_nothing", stale_author),
        claim("administer::the_policys_own_tests_and_deletions_are_checked_before_anything_changes", checked),
        claim("administer::a_rollback_is_a_new_revision_and_the_history_says_who_and_why", rollback),
        claim("administer::a_coordinator_of_another_mesh_gets_no_token", another_mesh),
        claim("administer::policy_is_checked_and_tested_with_the_coordinator_away", offline),
        claim("administer::the_log_has_a_row_for_every_change_and_its_chain_holds", audit),
        claim(
            "administer::an_exported_log_shows_without_the_coordinator_that_it_is_whole_and_what_it_issued",
            exported,
        ),
        claim("administer::an_issuance_and_an_unchanged_log_are_proven_with_the_coordinator_away", proven),
        claim("administer::what_a_node_may_hold_is_changed_and_what_ended_on_it_is_forgotten", node_verbs),
    ]
}

fn first_run_once() -> Result<()> {
    let mesh = Mesh::new(&[])?;
    let file = mesh.coordinator.directory().join("first-run-token");
    let claim = [OsStr::new("admin"), OsStr::new("claim"), OsStr::new("--first-run-token-file"), file.as_os_str()];
    let again = mesh.coordinator.admin(&claim)?.expect(5)?;
    ensure!(again.stderr.contains("not-authenticated"), "{again:?}");
    Ok(())
}

/// Runs a command under another administrator's token.
fn under(mesh: &Mesh, token: &Path, command: &[&str]) -> Result<Answer> {
    let mut all = words(command);
    all.extend([OsStr::new("--token-file"), token.as_os_str()]);
    mesh.coordinator.admin(&all)
}

fn viewer() -> Result<()> {
    let mesh = Mesh::new(&[])?;
    let made = mesh.coordinator.say(&["admin", "token", "create", "eve", "--role", "viewer"])?.expect(0)?;
    let token = mesh.lab.directory().join("eve.token");
    std::fs::write(&token, made.stdout.trim())?;
    under(&mesh, &token, &["node", "list"])?.expect(0)?;
    under(&mesh, &token, &["audit", "verify"])?.expect(0)?;
    for change in [&["token", "create", "--for", WEB][..], &["policy", "rollback", "1"], &["admin", "token", "list"]] {
        under(&mesh, &token, change)?.expect(5)?;
    }
    ensure!(mesh.coordinator.say(&["token", "list", "-o", "json"])?.json()?["items"] == serde_json::json!([]));
    Ok(())
}

fn revision(mesh: &Mesh) -> Result<u64> {
    let policy = mesh.coordinator.say(&["policy", "get", "-o", "json"])?.expect(0)?.json()?;
    policy["revision"].as_u64().context("policy get says the revision")
}

fn stale_author() -> Result<()> {
    let mesh = Mesh::new(&[])?;
    mesh.apply(POLICY)?;
    let changed = POLICY.replace("[mesh, bank, shop, lab]", "[mesh, bank, shop, lab, more]");
    mesh.try_apply(&changed, &["--if-rev", "0"])?.expect(7)?;
    ensure!(revision(&mesh)? == 1);
    mesh.try_apply(&changed, &["--if-rev", "1", "--dry-run"])?.expect(0)?;
    ensure!(revision(&mesh)? == 1, "a dry run changed the policy");
    mesh.try_apply(&changed, &["--if-rev", "1"])?.expect(0)?;
    ensure!(revision(&mesh)? == 2);
    Ok(())
}

fn checked() -> Result<()> {
    let mesh = Mesh::new(&[])?;
    mesh.apply(POLICY)?;
    let case = "connect: 8080/tcp, expect: { verdict: deny }";
    let failing = format!(
        "{POLICY}---\nkind: Tests\nname: wishes\ncases:\n  shut: {{ from: {WEB}, to: bank/banking-api, {case} }}\n"
    );
    let refused = mesh.try_apply(&failing, &[])?.expect(3)?;
    ensure!(refused.stderr.contains("wishes:shut") && refused.stderr.contains("mesh.yaml:"), "{refused:?}");
    let bare = "kind: Set\nname: tests\nowns: [mesh]\n---\nkind: Mesh\nname: bank.example\n";
    let refused = mesh.try_apply(bare, &[])?.expect(3)?;
    ensure!(refused.stderr.contains("--allow-delete"), "the next step is not named: {refused:?}");
    ensure!(revision(&mesh)? == 1);
    Ok(())
}

fn rollback() -> Result<()> {
    let mesh = Mesh::new(&[])?;
    mesh.apply(POLICY)?;
    let first = mesh.coordinator.say(&["policy", "get", "-o", "json"])?.expect(0)?.json()?;
    mesh.coordinator.say(&["policy", "rollback", "9"])?.expect(6)?;
    mesh.try_apply(&POLICY.replace("[mesh, bank, shop, lab]", "[mesh, bank, shop, lab, more]"), &[])?.expect(0)?;
    mesh.coordinator.say(&["policy", "rollback", "1", "-m", "the page is down"])?.expect(0)?;
    let now = mesh.coordinator.say(&["policy", "get", "-o", "json"])?.expect(0)?.json()?;
    ensure!(now["items"] == first["items"] && now["revision"] == 3, "{now}");
    let history = mesh.coordinator.say(&["policy", "history", "-o", "json"])?.expect(0)?.json()?;
    let newest = &history["items"][0];
    ensure!(newest["cause"] == "rollback 1" && newest["why"] == "the page is down", "{newest}");
    ensure!(newest["who"] == "admin:admin", "{newest}");
    Ok(())
}

fn another_mesh() -> Result<()> {
    let (mesh, other) = (Mesh::new(&[])?, Mesh::new(&[])?);
    let root = other.coordinator.directory().join("root.pem");
    let mut command = words(&["node", "list", "--root"]);
    command.push(root.as_os_str());
    let refused = mesh.coordinator.admin(&command)?.expect(1)?;
    ensure!(refused.stderr.contains("untrusted-issuer"), "{refused:?}");
    Ok(())
}

fn offline() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.coordinator.stop()?;
    let file = mesh.lab.directory().join("offline.yaml");
    std::fs::write(&file, POLICY)?;
    for verb in ["check", "test"] {
        mesh.coordinator.admin(&[OsStr::new("policy"), OsStr::new(verb), file.as_os_str()])?.expect(0)?;
    }
    std::fs::write(&file, POLICY.replace("kind: Mesh", "kind: Mehs"))?;
    let found = mesh.coordinator.admin(&[OsStr::new("policy"), OsStr::new("check"), file.as_os_str()])?.expect(3)?;
    ensure!(found.stdout.contains("offline.yaml:"), "{found:?}");
    let away = mesh.coordinator.say(&["node", "list"])?.expect(4)?;
    ensure!(away.stderr.contains("warren-coordinator serve"), "the next step is not named: {away:?}");
    Ok(())
}

fn exported() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let web = mesh.node("web-1", WEB)?;
    let shown = web.say(&["cert", "show", "-o", "json"])?.expect(0)?.json()?;
    let certificates = shown["items"].as_array().context("certificates")?;
    let tunnel = certificates.iter().find(|item| item["tunnelKey"].is_string()).context("a tunnel certificate")?;
    let serial = tunnel["serial"].as_str().context("its serial number")?.to_owned();
    let noted = mesh.coordinator.say(&["audit", "verify", "-o", "json"])?.expect(0)?.json()?;
    let noted = noted["head"].as_str().context("a head")?.to_owned();
    mesh.token(WEB, &[])?;
    let rows = mesh.coordinator.say(&["audit", "export"])?.expect(0)?.stdout;
    let newest = mesh.coordinator.say(&["audit", "verify", "-o", "json"])?.expect(0)?.json()?;
    mesh.coordinator.stop()?;
    let file = mesh.lab.directory().join("audit.jsonl");
    let name = file.to_str().context("a path in UTF-8")?;
    std::fs::write(&file, &rows)?;
    let all = ["audit", "verify", "--file", name, "--noted", &noted, "--serial", &serial, "-o", "json"];
    let report = web.say(&all)?.expect(0)?.json()?;
    ensure!(report["head"] == newest["head"] && report["entries"] == newest["entries"], "{report:#} {newest:#}");
    ensure!(report["issuedIn"].as_array().map(Vec::len) == Some(1), "{report:#}");
    web.say(&["audit", "verify", "--file", name, "--serial", "00"])?.expect(3)?;
    std::fs::write(&file, rows.replacen(&serial, "4242", 1))?;
    let broken = web.say(&["audit", "verify", "--file", name])?.expect(3)?;
    ensure!(broken.stdout.contains("was changed"), "{broken:?}");
    Ok(())
}

fn proven() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let place = mesh.lab.directory().to_owned();
    let keep = |name: &str, text: &str| -> Result<String> {
        let file = place.join(name);
        std::fs::write(&file, text)?;
        Ok(file.to_str().context("a path in UTF-8")?.to_owned())
    };
    let kept = mesh.coordinator.say(&["audit", "head", "-o", "json"])?.expect(0)?.stdout;
    let kept = keep("head.json", &kept)?;
    let web = mesh.node("web-1", WEB)?;
    let shown = web.say(&["cert", "show", "-o", "json"])?.expect(0)?.json()?;
    let serials: Vec<_> =
        shown["items"].as_array().context("certificates")?.iter().map(|item| &item["serial"]).collect();
    ensure!(serials.len() > 1, "the node's and the tunnel's: {shown:#}");
    let root = keep("kept-root.pem", &std::fs::read_to_string(mesh.coordinator.directory().join("root.pem"))?)?;
    let mut proofs = Vec::new();
    for serial in &serials {
        let serial = serial.as_str().context("a serial number")?;
        let proof =
            mesh.coordinator.say(&["audit", "prove", serial, "--since", &kept, "-o", "json"])?.expect(0)?.stdout;
        proofs.push((serial, proof));
    }
    mesh.coordinator.say(&["audit", "prove", "00ff"])?.expect(6)?;
    mesh.coordinator.stop()?;
    let verify = |proof: &str, serial: &str, exit| {
        let arguments = ["audit", "verify", "--proof", proof, "--head", &kept, "--serial", serial, "--root", &root];
        web.say(&arguments)?.expect(exit)
    };
    for (serial, proof) in &proofs {
        let file = keep("proof.json", proof)?;
        let said = verify(&file, serial, 0)?;
        ensure!(said.stdout.contains("is in the log") && said.stdout.contains("its beginning"), "{said:?}");
        verify(&file, "00ff", 3)?;
        verify(&keep("proof.json", &proof.replace(serial, "00ff"))?, "00ff", 3)?;
    }
    let other = Mesh::new(&[])?;
    let foreign = other.coordinator.say(&["audit", "head", "-o", "json"])?.expect(0)?.stdout;
    let refused = web.say(&["audit", "verify", "--proof", &keep("foreign.json", &foreign)?, "--root", &root])?;
    ensure!(refused.stderr.contains("manifest-signer"), "{refused:?}");
    Ok(())
}

fn audit() -> Result<()> {
    let mesh = Mesh::new(&[])?;
    mesh.apply(POLICY)?;
    mesh.coordinator.say(&["token", "create", "--for", WEB, "-m", "rack 4"])?.expect(0)?;
    let log = mesh.coordinator.say(&["audit", "list", "-o", "json"])?.expect(0)?;
    ensure!(!log.stdout.contains("wj1_") && !log.stdout.contains("wa1_"), "the log holds a secret");
    let log = log.json()?;
    let rows = log["items"].as_array().context("items")?;
    let actions: Vec<_> = rows.iter().filter_map(|row| row["action"].as_str()).collect();
    ensure!(actions.starts_with(&["token.create", "policy.apply"]), "{actions:?}");
    ensure!(rows[0]["why"] == "rack 4" && rows[0]["who"] == "admin:admin", "{}", rows[0]);
    let report = mesh.coordinator.say(&["audit", "verify", "-o", "json"])?.expect(0)?.json()?;
    ensure!(report["intact"] == true && report["entries"] == rows.len(), "{report}");
    Ok(())
}

fn node_verbs() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let _web = mesh.node("web-1", WEB)?;
    let say = |words: &[&str]| mesh.coordinator.say(words);
    let node = |words: &[&str]| say(words)?.expect(0)?.json();
    let listed = node(&["node", "list", "-o", "json"])?["items"][0].clone();
    let id = listed["id"].as_str().context("an id")?;
    let instance = listed["instances"][0]["id"].as_str().context("an instance")?;
    let dry = node(&["node", "set-workloads", id, "shop/checkout", "--dry-run", "-o", "json"])?;
    ensure!(dry["workloads"] == serde_json::json!(["shop/checkout"]), "{dry}");
    ensure!(
        node(&["node", "show", id, "-o", "json"])?["workloads"] == serde_json::json!([WEB]),
        "a dry run changed it"
    );
    let both = node(&["node", "set-workloads", id, WEB, "shop/checkout", "-m", "a second one", "-o", "json"])?;
    ensure!(both["workloads"] == serde_json::json!(["shop/checkout", WEB]), "{both}");
    ensure!(node(&["node", "set-workloads", id, "--none", "-o", "json"])?["workloads"] == serde_json::json!([]));
    say(&["node", "set-workloads", id])?.expect(2)?;
    let trusted = say(&["node", "forget-instance", instance])?.expect(7)?;
    ensure!(trusted.stderr.contains("revoke it first"), "the next step is not named: {trusted:?}");
    say(&["node", "revoke", id, "--yes"])?.expect(0)?;
    say(&["node", "forget-instance", instance])?.expect(0)?;
    ensure!(node(&["node", "show", id, "-o", "json"])?["instances"] == serde_json::json!([]));
    say(&["node", "forget", id])?.expect(0)?;
    ensure!(node(&["node", "list", "-o", "json"])?["items"] == serde_json::json!([]));
    let log = node(&["audit", "list", "-o", "json"])?;
    let row = log["items"].as_array().context("rows")?.iter().find(|row| row["why"] == "a second one");
    let row = row.context("the change left no row with its words")?;
    ensure!(row["action"] == "node.set-workloads" && row["old"]["workloads"] == serde_json::json!([WEB]), "{row}");
    Ok(())
}
