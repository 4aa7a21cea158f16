//! Fusion: which values are kept in memory, and which work runs as one kernel.
//!
//! Input is a closed graph. Four steps:
//! [`layout`] gives every value in memory a layout and resolves views; elementwise values that nothing needs in memory
//! stay expressions. [`regions`] groups elementwise work and reductions over the same elements. [`store`] decides which
//! expressions used by several regions are worth storing rather than computing again; [`epilogues`] makes elementwise
//! work on a product's result part of its kernel.
//!
//! The result says what to run; [`crate::lower`] turns it into kernels. Nothing here knows offsets or devices.

pub mod epilogues;
pub mod expression;
pub mod layout;
pub mod regions;
pub mod store;

pub use layout::{Form, Layout, Layouts, Owner};
pub use regions::{Item, Items, Region};
