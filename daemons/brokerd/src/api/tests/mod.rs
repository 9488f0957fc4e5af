//! Both interfaces over a real broker: ledger and embedded queue in a directory of the test's own. REST is called as a
//! service, gRPC over real TLS.

mod grpc;
mod openapi;
mod rabbit;
mod rest;
mod rig;
mod roles;
mod workers;
