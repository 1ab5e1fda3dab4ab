//! Compiles the `.proto` files with protox, so that no installed protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["common.proto", "enrol.proto", "control.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=src/wire/{file}");
    }
    let descriptors = protox::compile(files, ["src/wire"])?;
    prost_build::Config::new().bytes([".warren.v1.ScopeObject.content"]).compile_fds(descriptors)?;
    Ok(())
}
