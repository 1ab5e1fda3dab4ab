//! The link to the coordinator: enrolment, the control session, issuance.

pub mod backoff;
