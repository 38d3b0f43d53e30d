//! What `shim.cpp` offers, as `shim.h` declares it.

use std::ffi::c_char;

use llama_cpp_sys_2 as sys;

#[repr(C)]
pub(super) struct RawFault {
    pub(super) code: i32,
    pub(super) message: [c_char; 1020],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RawUse {
    pub(super) device: sys::ggml_backend_dev_t,
    pub(super) model: u64,
    pub(super) context: u64,
    pub(super) compute: u64,
}

unsafe extern "C" {
    pub(super) fn shim_install(report: extern "C" fn(*const c_char));
    pub(super) fn shim_load_backends(directory: *const c_char, fault: *mut RawFault);
    pub(super) fn shim_gguf_open(path: *const c_char, fault: *mut RawFault) -> *mut sys::gguf_context;
    pub(super) fn shim_model_load(
        path: *const c_char,
        params: *const sys::llama_model_params,
        fault: *mut RawFault,
    ) -> *mut sys::llama_model;
    pub(super) fn shim_model_free(model: *mut sys::llama_model, fault: *mut RawFault);
    pub(super) fn shim_context_create(
        model: *mut sys::llama_model,
        params: *const sys::llama_context_params,
        fault: *mut RawFault,
    ) -> *mut sys::llama_context;
    pub(super) fn shim_context_free(context: *mut sys::llama_context, fault: *mut RawFault);
    pub(super) fn shim_decode(
        context: *mut sys::llama_context,
        batch: *const sys::llama_batch,
        fault: *mut RawFault,
    ) -> i32;
    pub(super) fn shim_logits(context: *mut sys::llama_context, fault: *mut RawFault) -> *mut f32;
    pub(super) fn shim_embedding(
        context: *mut sys::llama_context,
        sequence: i32,
        fault: *mut RawFault,
    ) -> *mut f32;
    pub(super) fn shim_tokenize(
        vocab: *const sys::llama_vocab,
        text: *const c_char,
        text_len: i32,
        tokens: *mut sys::llama_token,
        capacity: i32,
        add_special: bool,
        parse_special: bool,
        fault: *mut RawFault,
    ) -> i32;
    pub(super) fn shim_piece(
        vocab: *const sys::llama_vocab,
        token: sys::llama_token,
        buffer: *mut c_char,
        capacity: i32,
        fault: *mut RawFault,
    ) -> i32;
    pub(super) fn shim_sequence_remove(
        context: *mut sys::llama_context,
        sequence: i32,
        begin: i32,
        fault: *mut RawFault,
    ) -> bool;
    pub(super) fn shim_sequence_copy(
        context: *mut sys::llama_context,
        from: i32,
        to: i32,
        end: i32,
        fault: *mut RawFault,
    );
    pub(super) fn shim_sequence_copy_cells(
        context: *mut sys::llama_context,
        from: i32,
        to: i32,
        fault: *mut RawFault,
    ) -> bool;
    pub(super) fn shim_is_plain_cache(context: *mut sys::llama_context, fault: *mut RawFault) -> bool;
    pub(super) fn shim_sequence_take_cells(
        pool: *mut sys::llama_context,
        from: i32,
        context: *mut sys::llama_context,
        to: i32,
        streams: u32,
        fault: *mut RawFault,
    ) -> bool;
    pub(super) fn shim_memory_clear(context: *mut sys::llama_context, fault: *mut RawFault);
    pub(super) fn shim_state_size(
        context: *mut sys::llama_context,
        sequence: i32,
        fault: *mut RawFault,
    ) -> usize;
    pub(super) fn shim_state_save(
        context: *mut sys::llama_context,
        sequence: i32,
        data: *mut u8,
        size: usize,
        fault: *mut RawFault,
    ) -> usize;
    pub(super) fn shim_state_restore(
        context: *mut sys::llama_context,
        sequence: i32,
        data: *const u8,
        size: usize,
        fault: *mut RawFault,
    ) -> usize;
    pub(super) fn shim_memory(
        context: *const sys::llama_context,
        uses: *mut RawUse,
        capacity: usize,
        fault: *mut RawFault,
    ) -> usize;
}

#[cfg(target_os = "linux")]
unsafe extern "C" {
    pub(super) fn shim_processors() -> u32;
    pub(super) fn shim_team(threads: u32, ids: *mut i32);
}
