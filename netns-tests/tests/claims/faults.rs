//! What goes wrong on a host is named, and the node ends closed, never open.
//!
//! ```text
//!   coordinator   web-1 (something breaks here)   bank-1
//!   ====================================================
//! ```

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use rtnetlink::{LinkBridge, LinkUnspec};
use warren_netns_tests::host::{Outcome, device, netlink};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::namespace::small_disk;
use warren_netns_tests::processes::eventually;

use super::{POLICY, WEB, claim, wait_until_allowed, web_and_bank};

const SILENCE: Duration = Duration::from_secs(2);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("faults::a_removed_tun_device_is_made_anew_and_the_node_is_closed_and_says_so_meanwhile", tun_removed),
        claim("faults::a_port_in_use_is_named_with_the_next_step", port_in_use),
        claim("faults::a_half_written_state_file_is_named_and_nothing_starts_open", half_written),
        claim("faults::a_full_disk_is_named_and_the_last_state_stays_in_force", full_disk),
        claim("faults::a_second_node_in_one_namespace_is_refused", second_node),
        claim("faults::two_daemons_cannot_share_a_state_directory", shared_state),
        claim("faults::a_node_that_is_not_enrolled_says_what_to_type", not_enrolled),
        claim("faults::an_unknown_key_in_the_configuration_is_named_with_its_line", unknown_key),
    ]
}

/// Why a node did not start.
fn refusal(node: &mut Node) -> Result<String> {
    match node.start() {
        Ok(()) => anyhow::bail!("the node started"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn tun_removed() -> Result<()> {
    let (mesh, mut web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let api = bank.at(8080)?;
    let before = web.addresses()?;
    let capture = mesh.lab.capture()?;
    // Another device takes the name while the node is held, so that it cannot make its own.
    web.process()?.signal(Signal::SIGSTOP)?;
    web.host.namespace.run_async(|| async {
        let handle = netlink().await?;
        handle.link().add(LinkBridge::new("holds0").build()).execute().await?;
        let (holds, tun) = (device(&handle, "holds0").await?, device(&handle, "warren0").await?);
        handle.link().del(tun).execute().await?;
        let renamed = LinkUnspec::new_with_index(holds).name("warren0".to_owned()).build();
        Ok(handle.link().change(renamed).execute().await?)
    })?;
    web.process()?.signal(Signal::SIGCONT)?;
    eventually("the status says what is wrong", IN_FORCE, || {
        let status = web.say(&["status", "-o", "json"])?.stdout;
        Ok(status.contains("the TUN device warren0 is gone and cannot be made anew yet") && !is_ready(&web)?)
    })?;
    let (outcome, _) = web.host.tcp(api, b"question", SILENCE)?;
    ensure!(outcome != Outcome::Connected, "overlay traffic went somewhere: {outcome:?}");
    let IpAddr::V6(address) = api.ip() else { anyhow::bail!("the first address is IPv6") };
    ensure!(capture.frames_with(&address.octets()) == 0, "overlay traffic left in clear");
    web.host.delete_device("warren0")?;
    wait_until_allowed(&web, &bank)?;
    eventually("the node is ready again", IN_FORCE, || is_ready(&web))?;
    ensure!(web.addresses()? == before && web.process()?.ended()?.is_none());
    ensure!(!web.say(&["status", "-o", "json"])?.stdout.contains("is gone"), "the status still speaks of it");
    // And with nothing in the way, as often as somebody removes it.
    for _ in 0..2 {
        web.host.delete_device("warren0")?;
        wait_until_allowed(&web, &bank)?;
    }
    ensure!(capture.frames_with(&address.octets()) == 0, "overlay traffic left in clear");
    web.stop()
}

fn is_ready(node: &Node) -> Result<bool> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    Ok(status["ready"].as_bool() == Some(true))
}

fn port_in_use() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut node = mesh.enrol("web-1", WEB)?;
    let taken = node.host.namespace.run(|| Ok(UdpSocket::bind("[::]:51820")?))?;
    let told = refusal(&mut node)?;
    ensure!(told.contains("51820") && told.contains("in use"), "{told}");
    drop(taken);
    node.start()
}

fn half_written() -> Result<()> {
    let (mut mesh, mut web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    web.stop()?;
    mesh.coordinator.stop()?;
    let mut good = Vec::new();
    for entry in std::fs::read_dir(web.state())?.flatten().filter(|entry| entry.path().is_file()) {
        good.push((entry.path(), std::fs::read(entry.path())?));
    }
    for (file, content) in good.iter().filter(|(_, content)| !content.is_empty()) {
        std::fs::write(file, &content[..content.len() / 2])?;
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match web.start() {
            // A damaged second copy, or a file that can be made again: then the node is whole without it.
            Ok(()) => {
                let (outcome, _) = web.host.tcp(bank.at(9000)?, b"question", SILENCE)?;
                ensure!(outcome != Outcome::Connected, "{name} cut in half opened a denied port");
                web.stop()?;
            }
            Err(error) => ensure!(format!("{error:#}").contains(&name), "{name} is not named: {error:#}"),
        }
        // The node may have written other files meanwhile; each round begins from the same state.
        for (file, content) in &good {
            std::fs::write(file, content)?;
        }
    }
    web.start()?;
    wait_until_allowed(&web, &bank)
}

fn full_disk() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let token = mesh.token(WEB, &[])?;
    let mut node = Node::on(mesh.lab.host("web-1")?, WEB)?;
    std::fs::create_dir(node.state())?;
    let disk = small_disk(&node.state())?;
    let enrolled =
        node.cli(&[std::ffi::OsStr::new("enrol"), std::ffi::OsStr::new("--token-file"), token.as_os_str()])?;
    enrolled.expect(0)?;
    node.start()?;
    // Fill what is left, then let something happen that the node wants to keep.
    std::fs::write(node.state().join("filler"), vec![0; 16 << 20]).expect_err("the disk is small");
    mesh.try_apply(&super::policy_with_another_port(), &[])?.expect(0)?;
    let full =
        |text: &str| text.contains("disk is full") || text.contains("No space left") || text.contains("disk-full");
    eventually("the full disk is named", IN_FORCE, || {
        Ok(full(&node.process()?.log_text()) || node.process()?.ended()?.is_some())
    })?;
    ensure!(full(&node.process()?.log_text()), "{}", node.process()?.log_text());
    std::fs::remove_file(node.state().join("filler"))?;
    if node.process()?.ended()?.is_some() {
        node.start()?;
    }
    node.say(&["status"])?.expect(0)?;
    node.kill()?;
    drop(disk);
    Ok(())
}

fn second_node() -> Result<()> {
    let (mesh, web, _bank) = web_and_bank(&[])?;
    let token = mesh.token(WEB, &[])?;
    let twin = web.twin()?;
    twin.cli(&[std::ffi::OsStr::new("enrol"), std::ffi::OsStr::new("--token-file"), token.as_os_str()])?.expect(0)?;
    let refused = twin.say(&["up"])?;
    ensure!(refused.code != Some(0), "two nodes run in one namespace");
    ensure!(refused.stderr.contains("namespace") || refused.stdout.contains("namespace"), "{refused:#?}");
    web.say(&["status", "--check", "ready"])?.expect(0)?;
    Ok(())
}

fn shared_state() -> Result<()> {
    let (_mesh, web, _bank) = web_and_bank(&[])?;
    let refused = web.say(&["up"])?;
    ensure!(refused.code != Some(0), "two daemons share {}", web.state().display());
    web.say(&["status", "--check", "ready"])?.expect(0)?;
    Ok(())
}

fn not_enrolled() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let node = Node::on(mesh.lab.host("web-1")?, WEB)?;
    let refused = node.say(&["up"])?;
    ensure!(refused.code != Some(0) && refused.stderr.contains("warren enrol"), "{refused:#?}");
    let refused = node.say(&["status"])?;
    ensure!(refused.code == Some(4) && refused.stderr.contains("warren up"), "{refused:#?}");
    Ok(())
}

fn unknown_key() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let node = Node::on(mesh.lab.host("web-1")?, WEB)?;
    node.configure("tunnle: { port: 1 }\n")?;
    let refused = node.say(&["config", "validate"])?;
    ensure!(refused.code != Some(0), "{refused:#?}");
    ensure!(refused.stderr.contains("tunnle") && refused.stderr.contains("tunnel"), "{refused:#?}");
    ensure!(refused.stderr.contains(":3"), "the line is not named: {refused:#?}");
    Ok(())
}
