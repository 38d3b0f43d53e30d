//! The process in which a check runs, for this crate's own tests: the node's is a Python interpreter.

fn main() {
    let job = std::env::args_os().nth(1).unwrap_or_default();
    llm_node_conformance::child(job.as_ref())
}
