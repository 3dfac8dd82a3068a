//! Names the entry point: `cofferdam_linux::entry` seals the program before the C library starts.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |key: &str| std::env::var(key).unwrap_or_default();
    // Relocations of the program's own addresses as bits instead of 24 bytes each, so less of the file is read at every start
    // (24 KiB of resident memory). The C library that is linked in does them since glibc 2.36, and linkers that know nothing of
    // this leave it be.
    if target("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    // Without optimisation that code calls what it should have in line, through addresses that are not relocated yet.
    let optimised = target("OPT_LEVEL") != "0";
    if optimised && target("CARGO_CFG_TARGET_ARCH") == "x86_64" && target("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo:rustc-link-arg-bins=-Wl,-e,cofferdam_start");
    }
}
