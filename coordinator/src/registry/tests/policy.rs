//! Policy commands.

use std::task::{Context, Waker};

use super::*;

#[tokio::test]
async fn a_set_is_read_where_no_session_waits_for_it() {
    let mesh = Mesh::new().await;
    let text = format!("kind: Mesh\nname: other.example\n---\nkind: Nothing\n{}", "# a remark\n".repeat(100_000));
    let files = vec![SourceFile { name: "large.yaml".to_owned(), text }];
    let submission = Submission { files, allow_delete: 0, if_match: None, dry_run: true };
    let caller = Caller::new("test");
    let mut apply = Box::pin(mesh.registry.apply_policy(&caller, submission));
    // Its first turn only hands the text over; what is wrong with it is found elsewhere.
    assert!(apply.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(apply.await.unwrap_err().refusal.reason, Reason::PolicyInvalid);
}
