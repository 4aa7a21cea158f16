//! Fusion: which values are kept in memory, and which work runs as one kernel.
//!
//! Input is a closed graph. Steps, in order:
//! * [`scores`] finds what only attention needs: such values are never stored;
//! * [`prologues`] finds elementwise values that products can make as they read them;
//! * [`layout`] gives every value in memory a layout and resolves views; elementwise values that nothing needs in
//!   memory stay expressions; parts of a concatenation are computed in place (`inside`); what neighbours share is read
//!   where it is (`repeated`);
//! * [`items`] collects what is to run: [`regions`] of elementwise work and reductions, passes of [`attention`], other
//!   kernels, copies;
//! * [`merge`] joins regions over the same elements;
//! * [`store`] decides which expressions used by several regions are worth storing rather than computing again;
//! * [`epilogues`] makes elementwise work on a product's result part of its kernel, and [`sums`] sums of its operand.
//!
//! The result says what to run; [`crate::lower`] turns it into kernels. Nothing here knows offsets or devices.

pub mod attention;
pub mod epilogues;
pub mod expression;
mod inside;
pub mod items;
pub mod layout;
pub mod merge;
mod paths;
pub mod prologues;
pub mod regions;
pub mod repeated;
pub mod scores;
pub mod store;
pub mod sums;

pub use items::{Besides, Item, Items};
pub use layout::{Form, Layout, Layouts, Owner};
pub use regions::Region;
