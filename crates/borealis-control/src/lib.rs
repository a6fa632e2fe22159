//! Catalog and process supervision of a local cluster.
