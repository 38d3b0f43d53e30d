//! A worker as a program of its own, without Python: `worker ENDPOINT`, the secret in the
//! environment. What the tests of this crate start.

fn main() {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().unwrap_or_default();
    let secret = std::env::var("LLM_NODE_WORKER_SECRET").unwrap_or_default();
    std::process::exit(llm_node_worker::serve::run_worker(&endpoint, secret));
}
