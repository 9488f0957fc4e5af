//! codering's gRPC interface: the generated code, its JSON form, and the one place where wire types
//! become codering-core's validated types and back ([`convert`]).

pub mod convert;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod json;
pub mod status;

/// The generated messages, clients and servers of package `codering.v1`.
#[allow(clippy::all, clippy::large_futures, missing_docs)]
pub mod v1 {
    tonic::include_proto!("codering.v1");
}

/// The compiled `.proto` files, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("codering");
