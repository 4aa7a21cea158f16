//! Memory: live ranges and exact arena offsets.
//!
//! A buffer is live from the kernel that first writes it to the last that touches it. An elementwise kernel may write
//! its result over an operand that dies there. What shares a place is a block; `pack.rs` finds where blocks lie. Where
//! kernels may run at once, blocks live a little longer for it (`at_once.rs`), and so that they may, kernels have moved
//! next to each other (`near.rs`).
//!
//! What the module before hands over lies at the lower end, what is handed on at the upper end. The next module takes
//! its arena upside down: where this one ends, it begins.

mod apart;
mod at_once;
mod branch;
mod largest;
mod near;
mod pack;

use std::collections::BTreeMap;

use slrc_plan::buffer::{Live, align};
use slrc_plan::kernel::{Access, Kernel};
use slrc_plan::random::Sequence;
use slrc_plan::validate::in_place;
use slrc_plan::{Buffer, Dims, Space};

use crate::ir::graph::{Graph, InputKind, RootKind};
use crate::ir::types::Type;
use crate::lower::Draft;
use crate::lower::Names;
use crate::memory::apart::apart;
pub use crate::memory::near::bring_near;
use crate::memory::pack::{Block, Packing, Place, pack};

/// A program's arena.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    /// The program's own buffers, with offsets and live ranges.
    pub buffers: Vec<Buffer>,
    /// By buffer, whether it lies where something handed on lies later: in a larger arena, at the upper end of that.
    pub at_top: Vec<bool>,
    /// Bytes of the arena, with the boundaries at its ends.
    pub bytes: usize,
    /// Most bytes live at once, boundaries included; no arena can be smaller.
    pub live_bytes: usize,
}

/// A part of the most bytes live at once: an arena that exceeds them by no more is not worth another search.
const NEARLY: usize = 100;
/// Such searches, and the most blocks of which they are not too long: one takes as much time as the first.
const ATTEMPTS: usize = 6;
const MOST_CUT: usize = 1024;

/// Buffers that share one place, one after the other.
type Members = Vec<usize>;

/// The boundaries of a module: ids and types of all `x`, then of all `e` that cross.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// What the module before hands over.
    pub received: Vec<(String, Type)>,
    /// What is handed on.
    pub passed_on: Vec<(String, Type)>,
}

impl Ends {
    /// Those of a program of module `k`.
    pub fn of(g: &Graph, k: usize) -> Ends {
        let received = |e: bool| {
            let inputs = g.inputs.iter().filter(move |i| match i.kind {
                InputKind::Boundary(_) => !e,
                InputKind::BoundaryGradient(_) => e,
                InputKind::Data | InputKind::Labels => false,
            });
            inputs.map(|i| (Names::input(i, k), i.ty.clone()))
        };
        let passed_on = |e: bool| {
            let id = move |kind: &RootKind| match *kind {
                RootKind::Output(_) => (!e).then(|| Names::boundary(k, 0)),
                RootKind::Boundary(i) => (!e).then(|| Names::boundary(k, i)),
                RootKind::OutputGradient(i) => e.then(|| Names::boundary_gradient(k, i)),
                RootKind::Update(_) | RootKind::Report(_) => None,
            };
            g.roots.iter().filter_map(move |r| Some((id(&r.kind)?, g.ty(r.value).clone())))
        };
        Ends {
            received: received(false).chain(received(true)).collect(),
            passed_on: passed_on(false).chain(passed_on(true)).collect(),
        }
    }
}

/// The buffers of a draft and of its ends, and the blocks that they share.
struct Division {
    /// Those of the draft, then boundaries.
    buffers: Vec<Buffer>,
    /// How many are of the draft.
    own: usize,
    /// By block.
    members: Vec<Members>,
    blocks: Vec<Block>,
}

fn divide(draft: &Draft, ends: &Ends) -> Division {
    let live = live_ranges(draft);
    let mut buffers = own_buffers(draft, &live);
    let own = buffers.len();
    let mut places = vec![Place::Anywhere; own];
    for (b, place) in at_the_ends(ends, &live, draft.kernels.len()) {
        buffers.push(b);
        places.push(place);
    }
    let (members, blocks) = share_in_place(&draft.kernels, &buffers, &places).into_iter().unzip();
    Division { buffers, own, members, blocks }
}

/// Places every buffer of a draft.
pub fn place(draft: &Draft, ends: &Ends) -> Arena {
    let mut division = divide(draft, ends);
    if draft.at_once {
        at_once::extend(&draft.kernels, &mut division);
    }
    let live_bytes = most_live(&division.blocks, draft.kernels.len());
    let mut packed = pack(&division.blocks, live_bytes);
    // On a GPU results have places of their own already, where that lets kernels run at once.
    if !draft.at_once && division.blocks.len() <= MOST_CUT {
        packed = pack_apart(&mut division, packed, draft.kernels.len(), live_bytes);
    }
    let Division { mut buffers, own, members, blocks } = division;
    let mut at_top = vec![false; own];
    for ((members, block), offset) in members.into_iter().zip(&blocks).zip(packed.offsets) {
        for m in members {
            buffers[m].offset = offset;
            if m < own {
                at_top[m] = matches!(block.place, Place::Top(_));
            }
        }
    }
    buffers.truncate(own);
    Arena { buffers, at_top, bytes: packed.end, live_bytes }
}

/// A packing of blocks that are cut, and the division into these, where `packed` wastes much and one wastes less.
fn pack_apart(division: &mut Division, mut packed: Packing, kernels: usize, live_bytes: usize) -> Packing {
    let mut best = None;
    let mut rng = Sequence::new(0, 0, 0);
    for attempt in 0..ATTEMPTS {
        if packed.end <= live_bytes + live_bytes / NEARLY {
            break;
        }
        // All that can be cut, then halves of it, by chance.
        let wanted = || attempt == 0 || rng.word().is_multiple_of(2);
        let Some((members, blocks)) = apart(division, kernels, live_bytes, wanted) else { break };
        let again = pack(&blocks, live_bytes);
        if again.end < packed.end {
            (packed, best) = (again, Some((members, blocks)));
        }
    }
    if let Some(cut) = best {
        (division.members, division.blocks) = cut;
    }
    packed
}

/// By buffer, the first and the last kernel that touch it.
fn live_ranges(draft: &Draft) -> BTreeMap<&str, (usize, usize)> {
    let mut live: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (i, k) in draft.kernels.iter().enumerate() {
        for o in k.run.operands() {
            live.entry(o.view.buffer.as_str()).or_insert((i, i)).1 = i;
        }
    }
    live
}

/// Boundaries with their lives and places: every `x` further out than any `e`, since it holds longer and is there in
/// both programs, on both sides.
fn at_the_ends(ends: &Ends, live: &BTreeMap<&str, (usize, usize)>, kernels: usize) -> Vec<(Buffer, Place)> {
    let mut out = Vec::new();
    let mut add = |(id, ty): &(String, Type), live: Live, place: Place| {
        let shape = Dims(ty.shape.clone());
        let (space, bytes) = (Space::Arena, ty.bytes());
        let b =
            Buffer { id: id.clone(), space, dtype: ty.dtype, shape, order: None, offset: 0, bytes, live: Some(live) };
        out.push((b, place));
    };
    let mut depth = 0;
    for end in &ends.received {
        if let Some(&(_, last)) = live.get(end.0.as_str()) {
            add(end, Live { first: 0, last }, Place::Bottom(depth));
        }
        depth += align(end.1.bytes());
    }
    depth = 0;
    for end in &ends.passed_on {
        if let Some(&(first, _)) = live.get(end.0.as_str()) {
            add(end, Live { first, last: kernels - 1 }, Place::Top(depth));
        }
        depth += align(end.1.bytes());
    }
    out
}

fn own_buffers(draft: &Draft, live: &BTreeMap<&str, (usize, usize)>) -> Vec<Buffer> {
    let end = draft.kernels.len().saturating_sub(1);
    draft
        .buffers
        .iter()
        .filter_map(|d| {
            let &(first, last) = live.get(d.id.as_str())?;
            let identity: Vec<usize> = (0..d.shape.len()).collect();
            Some(Buffer {
                id: d.id.clone(),
                space: Space::Arena,
                dtype: d.dtype,
                shape: Dims(d.shape.clone()),
                order: (d.order != identity).then(|| Dims(d.order.clone())),
                offset: 0,
                bytes: d.dtype.bytes(d.shape.iter().product()),
                live: Some(Live { first, last: if d.keep { end } else { last } }),
            })
        })
        .collect()
}

/// Joins buffers that can follow each other in the same place.
fn share_in_place(kernels: &[Kernel], buffers: &[Buffer], places: &[Place]) -> Vec<(Members, Block)> {
    let index: BTreeMap<&str, usize> = buffers.iter().enumerate().map(|(i, b)| (b.id.as_str(), i)).collect();
    let live = |i: usize| buffers[i].live.expect("invariant: arena buffers have live ranges");
    // The block of each buffer, named by its first member.
    let mut follows: Vec<Option<usize>> = vec![None; buffers.len()];
    let mut followed = vec![false; buffers.len()];
    // Where the block that a buffer is the last of so far has to lie.
    let mut place_of = places.to_vec();
    for (i, k) in kernels.iter().enumerate() {
        let operands = k.run.operands();
        for new in operands.iter().filter(|o| o.access == Access::Write) {
            let Some(&n) = index.get(new.view.buffer.as_str()) else { continue };
            if live(n).first != i || follows[n].is_some() {
                continue;
            }
            let old = operands.iter().filter(|o| o.access == Access::Read).find_map(|o| {
                let &a = index.get(o.view.buffer.as_str())?;
                let dies = live(a).last == i && live(a).first < i && !followed[a];
                let one_place = [place_of[a], places[n]].contains(&Place::Anywhere);
                (dies && one_place && in_place(k, &buffers[a], &buffers[n])).then_some(a)
            });
            if let Some(a) = old {
                if places[n] == Place::Anywhere {
                    place_of[n] = place_of[a];
                }
                follows[n] = Some(a);
                followed[a] = true;
            }
        }
    }
    let next: BTreeMap<usize, usize> = follows.iter().enumerate().filter_map(|(n, a)| a.map(|a| (a, n))).collect();
    (0..buffers.len())
        .filter(|&i| follows[i].is_none())
        .map(|start| {
            let mut members = vec![start];
            while let Some(&n) = next.get(members.last().expect("not empty")) {
                members.push(n);
            }
            let last = *members.last().expect("not empty");
            let bytes = align(buffers[start].bytes);
            let block = Block { first: live(start).first, last: live(last).last, bytes, place: place_of[last] };
            (members, block)
        })
        .collect()
}

fn most_live(blocks: &[Block], kernels: usize) -> usize {
    let mut change = vec![0isize; kernels + 1];
    for b in blocks {
        change[b.first] += b.bytes as isize;
        change[b.last + 1] -= b.bytes as isize;
    }
    let mut now = 0;
    change
        .iter()
        .map(|c| {
            now += c;
            now
        })
        .max()
        .unwrap_or(0) as usize
}
