//! Link options: the soname of the library that this one stands in for, and `nodelete`, which keeps
//! it in memory after `dlclose`, as its thread still runs.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libibverbs.so.1");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
