//! Compiles the Workload API's `.proto` file with protox, so that no installed protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILE: &str = "src/workload_api/workload_api.proto";
    println!("cargo:rerun-if-changed={FILE}");
    let descriptors = protox::compile([FILE], ["src/workload_api"])?;
    tonic_prost_build::configure().build_client(false).compile_fds(descriptors)?;
    Ok(())
}
