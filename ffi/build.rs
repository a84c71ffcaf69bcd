//! Link options of `libnccl.so`: the soname that clients are linked with, and `nodelete`, which
//! keeps the library in memory after `dlclose`, as its threads still run.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnccl.so.2");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
