//! The `twinspan` command.

use std::process::ExitCode;

/// Frames are made and dropped all the time, on several threads; the system's allocator pays for that with a system call for
/// every few pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    twinspan::cli::main()
}
