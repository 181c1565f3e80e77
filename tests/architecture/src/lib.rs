//! The house's own rules, held by tests: see `tests/house.rs`.
