//! What is known about KVM, as data: facets and how hosts meet over them, items of state, selectors, the order of
//! things, and the ledger of guest-visible changes.
//!
//! The facts are the files in `data/`; `data/README.md` says how to add one. The build script reads and checks them
//! (duplicates, dangling references, unknown keys, a `detect` that compares releases) and they become the constants
//! here. This crate interprets nothing beyond looking things up.
#![forbid(unsafe_code)]

/// Text in the catalog.
pub type Str = &'static str;
/// A list in the catalog.
pub type List<T> = &'static [T];

macro_rules! record {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* })*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
    )* };
}
macro_rules! names {
    ($($item:item)*) => { $(
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $item
    )* };
}

include!("model.rs");
include!("items.rs");
include!("interface.rs");
include!("knobs.rs");

mod data {
    #![allow(missing_docs, clippy::unreadable_literal)]
    use super::*;
    include!(concat!(env!("OUT_DIR"), "/data.rs"));
}
pub use data::*;

mod lookup;
pub use lookup::*;
