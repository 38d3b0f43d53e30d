//! Where node and worker meet: one text, which the node gives the worker at its start.
//!
//! On Unix it is the path of a socket file, which the node makes in a folder that only its own user
//! may enter; on Windows the name of a named pipe. The secret in `FromWorker::Hello` keeps out who
//! should find the way in nevertheless.

use std::io;

use interprocess::local_socket::{GenericFilePath, GenericNamespaced, Name, ToFsName, ToNsName};

/// The endpoint as `interprocess` names it, to listen on or to connect to.
pub fn name(endpoint: &str) -> io::Result<Name<'_>> {
    if cfg!(windows) {
        endpoint.to_ns_name::<GenericNamespaced>()
    } else {
        endpoint.to_fs_name::<GenericFilePath>()
    }
}
