//! The program `agent`: the allocator, the crypto provider, and then the command line.
use std::process::ExitCode;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Heap profiles can be switched on while the agent runs; until then they cost nothing. Few arenas, and pages that go back to the
/// system within a second: the agent is small and shares its host.
#[cfg(feature = "jemalloc")]
// SAFETY: jemalloc reads this symbol at its first allocation, as text that ends in a zero; nothing else has this name.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: Option<&'static std::ffi::c_char> = Some(unsafe {
    &*c"prof:true,prof_active:false,lg_prof_sample:19,narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0".as_ptr()
});

fn main() -> ExitCode {
    // Another crate may have brought it already: then it is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    luffly_agent::cli::run(std::env::args_os()).into()
}
