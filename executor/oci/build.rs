//! Names the entry point: `cofferdam_linux::entry` seals the program before the C library starts.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |key: &str| std::env::var(key).unwrap_or_default();
    // Without optimisation that code calls what it should have in line, through addresses that are not relocated yet.
    let optimised = target("OPT_LEVEL") != "0";
    if optimised && target("CARGO_CFG_TARGET_ARCH") == "x86_64" && target("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo:rustc-link-arg-bins=-Wl,-e,cofferdam_start");
    }
}
