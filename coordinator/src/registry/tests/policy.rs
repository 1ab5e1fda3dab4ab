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

#[tokio::test]
async fn a_change_that_had_to_wait_is_judged_on_what_is_in_force_when_its_turn_comes() {
    let mesh = Mesh::new().await;
    let caller = Caller::new("test");
    let every = u32::try_from(super::super::policy::CHANGES).expect("few");
    let taken = Arc::clone(&mesh.registry.judging.changes).acquire_many_owned(every).await.expect("places");
    let mut first = Box::pin(mesh.registry.apply_policy(&caller, set(POLICY)));
    let later = Caller::new("later");
    let other = POLICY.replace("port: 8080", "port: 9090");
    assert_ne!(other, POLICY);
    let mut second = Box::pin(mesh.registry.apply_policy(&later, set(&other)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(&mut context).is_pending() && second.as_mut().poll(&mut context).is_pending());
    drop(taken);
    assert_eq!(first.await.expect("applied").number, 1);
    assert_eq!(second.await.expect("on top of the first").number, 2);
}
