//! The coordinator of a warren mesh.

fn main() {}
