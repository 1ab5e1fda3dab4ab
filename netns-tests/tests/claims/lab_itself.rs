//! The lab keeps its own promises: hosts reach each other over the wire in both families, a capture sees
//! what they say, and hosts that share no wire do not meet.
//!
//! ```text
//!   a        b
//!   ==========
//! ```

use libtest_mimic::Trial;
use warren_netns_tests::host::{ANSWER, Outcome};
use warren_netns_tests::lab::Lab;

use super::claim;

pub(crate) fn trials() -> Vec<Trial> {
    vec![claim("lab::hosts_on_one_wire_reach_each_other_and_a_capture_sees_it", hosts_reach_each_other)]
}

fn hosts_reach_each_other() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let capture = lab.capture()?;
    b.serve_tcp("[::]:80".parse()?, b"answer-in-clear")?;
    for address in [(b.v4, 80).into(), (b.v6, 80).into()] {
        let (outcome, answer) = a.tcp(address, b"question", ANSWER)?;
        assert_eq!((outcome, answer.as_slice()), (Outcome::Connected, b"answer-in-clear".as_slice()));
    }
    assert!(capture.frames_with(b"answer-in-clear") > 0, "the capture must see clear text where there is some");
    let (outcome, _) = a.tcp(b.at(81), b"question", ANSWER)?;
    assert_eq!(outcome, Outcome::Refused);
    Ok(())
}
