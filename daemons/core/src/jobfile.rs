//! A job as a person writes it, in TOML or JSON.
