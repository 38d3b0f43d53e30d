//! Runs a program shut in as a worker shuts its engine in: `sandboxed PROGRAM ARGUMENT...`.
//! For trying whether a device library bears it. The program can be dumped again: that does not stay over
//! `exec`.

#[cfg(unix)]
fn main() {
    use std::os::unix::process::CommandExt;

    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else { std::process::exit(2) };
    if llm_node_worker::sandbox::apply().is_err() {
        std::process::exit(3);
    }
    // The filter stays over `exec`, which returns only if it fails.
    let _ = std::process::Command::new(program).args(arguments).exec();
    std::process::exit(4);
}

#[cfg(not(unix))]
fn main() {
    std::process::exit(1);
}
