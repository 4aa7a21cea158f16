//! Elementwise work: a grid-stride loop, in vectors of four where every operand allows it.

use slrc_plan::DType;
use slrc_plan::region::{Level, Region};

use crate::emit::cuda::body::{Body, Origin, converted};
use crate::emit::cuda::code::{BLOCK, Call, Code, Registers, Table, blocks_for, index_type};

/// Most parameters of a function: a launch has 4 KB of them.
const MOST_POINTERS: usize = 400;
/// Most elements of a map that shares a launch.
const SMALL: usize = 1 << 20;

pub(super) fn emit(table: &Table<'_>, r: &Region) -> Vec<Call> {
    let mut code = Code::new(table);
    let body = Body::new(r);
    body.describe(&mut code);
    let grid = [blocks(&body), 1, 1];
    part(&body, &mut code, 0, grid[0]);
    let call = code.finish("map", BLOCK, grid);
    vec![Call { registers: Registers::For(live(&body)), ..call }]
}

/// Several maps in one launch, which do not depend on each other: each takes some of the blocks.
pub(super) fn emit_together(table: &Table<'_>, regions: &[&Region]) -> Call {
    let mut code = Code::new(table);
    let mut first = 0;
    let mut most = 0;
    for r in regions {
        let body = Body::new(r);
        most = most.max(live(&body));
        let count = blocks(&body);
        code.formula(format!("from block {first}"));
        body.describe(&mut code);
        code.open(format!("if (blockIdx.x >= {first} && blockIdx.x < {})", first + count));
        part(&body, &mut code, first, count);
        code.close();
        first += count;
    }
    let call = code.finish("maps", BLOCK, [first, 1, 1]);
    Call { registers: Registers::For(most), ..call }
}

/// How many of the first maps in `regions` may share a launch: small ones, of which none writes what another uses.
pub(super) fn how_many_together(table: &Table<'_>, regions: &[&Region]) -> usize {
    let range = |id: &str| table.get(id).map(|b| (b.space, b.offset, b.offset + b.bytes));
    let mut used: Vec<(&str, bool)> = Vec::new();
    for (i, r) in regions.iter().enumerate() {
        let loads = r.loads.iter().map(|l| (l.view.buffer.as_str(), false));
        let own: Vec<(&str, bool)> = loads.chain(r.stores.iter().map(|s| (s.view.buffer.as_str(), true))).collect();
        let meets = |(a, written): &(&str, bool)| {
            used.iter().any(|(b, also)| {
                (*written || *also)
                    && match (range(a), range(b)) {
                        (Some((s, from, to)), Some((t, first, last))) => s == t && from < last && first < to,
                        _ => true,
                    }
            })
        };
        let large = r.space.iter().product::<usize>() > SMALL;
        if large || own.iter().any(meets) || used.len() + own.len() > MOST_POINTERS {
            return i;
        }
        used.extend(own);
    }
    regions.len()
}

/// Registers for positions and what is computed.
const SPARE: usize = 16;

/// Elements that a thread works on at a time.
fn width(body: &Body<'_>) -> usize {
    if body.walk.vectors() { 4 } else { 1 }
}

/// Values live at once at most: every load and store of a thread's elements, addresses, and some numbers beside.
fn live(body: &Body<'_>) -> usize {
    let (loads, stores) = (body.region.loads.len(), body.region.stores.len());
    let elements: usize = (0..loads).map(|l| if body.walk.steps(l) { width(body) } else { 1 }).sum();
    elements + width(body) * stores + 2 * (loads + stores) + SPARE
}

fn blocks(body: &Body<'_>) -> usize {
    blocks_for(body.region.space.iter().product::<usize>() / width(body), BLOCK)[0]
}

/// The work of `blocks` blocks from number `first` on.
fn part(body: &Body<'_>, code: &mut Code<'_>, first: usize, blocks: usize) {
    let width = width(body);
    let ty = index_type(body.walk.end);
    let count = body.region.space.iter().product::<usize>() / width;
    let block = if first == 0 { "blockIdx.x".to_string() } else { format!("(blockIdx.x - {first})") };
    let step = blocks * BLOCK;
    code.open(format!("for ({ty} i = {block} * {BLOCK} + threadIdx.x; i < {count}; i += {step})"));
    let all: Vec<usize> = (0..body.walk.extents.len()).collect();
    if width == 1 {
        body.walk.coordinates(code, ty, "i", &all);
        elements(body, code);
        for s in body.stores(Level::Element) {
            body.store(code, s);
        }
    } else {
        code.line(format!("const {ty} first = i * 4;"));
        body.walk.coordinates(code, ty, "first", &all);
        vectors(body, code);
    }
    code.close();
}

/// Declares everything that is stored, in order.
fn elements(body: &Body<'_>, code: &mut Code<'_>) {
    let targets = body.stored(&body.stores(Level::Element));
    for i in body.closure(&targets, |_| false) {
        body.declare(code, i);
    }
}

/// The C type of four elements.
fn vector_type(d: DType) -> &'static str {
    match d {
        DType::F32 => "float4",
        DType::I32 => "int4",
        DType::U8 => "uchar4",
    }
}

fn vectors(body: &Body<'_>, code: &mut Code<'_>) {
    let stores = body.stores(Level::Element);
    let needed = body.closure(&body.stored(&stores), |_| false);
    let mut lanes: Vec<(String, String)> = Vec::new();
    for &i in &needed {
        let v = &body.values[i];
        let Origin::Load(l) = v.origin else { continue };
        let view = &body.region.loads[l].view;
        let dtype = code.dtype(&view.buffer);
        if body.walk.steps(l) {
            let p = code.pointer(&view.buffer, false);
            let at = body.walk.element(l);
            let four = vector_type(dtype);
            code.line(format!("const {four} {}_4 = *reinterpret_cast<const {four}*>({p} + {at});", v.name));
            let parts: Vec<String> = ["x", "y", "z", "w"].iter().map(|c| format!("(float){}_4.{c}", v.name)).collect();
            code.line(format!("const float {}_v[4] = {{{}}};", v.name, parts.join(", ")));
            lanes.push((v.name.clone(), format!("{}_v[lane]", v.name)));
        } else {
            body.declare(code, i);
        }
    }
    for &s in &stores {
        code.line(format!("float s{s}_v[4];"));
    }
    code.line("#pragma unroll");
    code.open("for (int lane = 0; lane < 4; ++lane)");
    for (name, value) in lanes {
        code.line(format!("const float {name} = {value};"));
    }
    for &i in &needed {
        if matches!(body.values[i].origin, Origin::Compute(_)) {
            body.declare(code, i);
        }
    }
    for &s in &stores {
        code.line(format!("s{s}_v[lane] = {};", body.region.stores[s].value));
    }
    code.close();
    for &s in &stores {
        let view = &body.region.stores[s].view;
        let dtype = code.dtype(&view.buffer);
        let p = code.pointer(&view.buffer, true);
        let at = body.walk.element(body.region.loads.len() + s);
        let four = vector_type(dtype);
        let parts: Vec<String> = (0..4).map(|l| converted(dtype, &format!("s{s}_v[{l}]"))).collect();
        code.line(format!("*reinterpret_cast<{four}*>({p} + {at}) = make_{four}({});", parts.join(", ")));
    }
}
