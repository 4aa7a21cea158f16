//! Elementwise work: a grid-stride loop, in vectors of four where every operand allows it, and of eight where flags are
//! stored as bits: the thread writes a byte.

use slrc_plan::DType;
use slrc_plan::region::{Level, Region};

use crate::emit::cuda::body::{Body, Origin, converted};
use crate::emit::cuda::code::{BLOCK, Call, Code, Registers, Table, blocks_for, index_type};

pub(super) fn emit(table: &Table<'_>, r: &Region) -> Vec<Call> {
    let mut code = Code::new(table);
    let body = Body::new(r);
    body.describe(&mut code);
    let width = width(&body, &code);
    let grid = [blocks(&body, width), 1, 1];
    elementwise(&body, &mut code, width, grid[0]);
    let call = code.finish("map", BLOCK, grid);
    vec![Call { registers: Registers::For(live(&body, width)), ..call }]
}

/// Registers for positions and what is computed.
const SPARE: usize = 16;

/// Elements that a thread works on at a time.
fn width(body: &Body<'_>, code: &Code<'_>) -> usize {
    let bits = body.region.stores.iter().any(|s| code.dtype(&s.view.buffer) == DType::Bit);
    assert!(!bits || body.walk.vectors(8), "invariant: bits are stored by the byte");
    match bits {
        true => 8,
        false if body.walk.vectors(4) => 4,
        false => 1,
    }
}

/// Values live at once at most: every load and store of a thread's elements, addresses, and some numbers beside.
fn live(body: &Body<'_>, width: usize) -> usize {
    let (loads, stores) = (body.region.loads.len(), body.region.stores.len());
    let elements: usize = (0..loads).map(|l| if body.walk.steps(l) { width } else { 1 }).sum();
    elements + width * stores + 2 * (loads + stores) + SPARE
}

fn blocks(body: &Body<'_>, width: usize) -> usize {
    blocks_for(body.region.space.iter().product::<usize>() / width, BLOCK)[0]
}

/// The work of so many blocks.
fn elementwise(body: &Body<'_>, code: &mut Code<'_>, width: usize, blocks: usize) {
    let ty = index_type(body.walk.end);
    let count = body.region.space.iter().product::<usize>() / width;
    let step = blocks * BLOCK;
    code.open(format!("for ({ty} i = blockIdx.x * {BLOCK} + threadIdx.x; i < {count}; i += {step})"));
    let all: Vec<usize> = (0..body.walk.extents.len()).collect();
    if width == 1 {
        body.walk.coordinates(code, ty, "i", &all);
        elements(body, code);
        for s in body.stores(Level::Element) {
            body.store(code, s);
        }
    } else {
        code.line(format!("const {ty} first = i * {width};"));
        body.walk.coordinates(code, ty, "first", &all);
        vectors(body, code, width);
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
        DType::Bit => unreachable!("invariant: bits are read by the byte"),
    }
}

/// A place some elements further.
fn further(at: &str, n: usize) -> String {
    if n == 0 { at.to_string() } else { format!("{at} + {n}") }
}

fn vectors(body: &Body<'_>, code: &mut Code<'_>, width: usize) {
    let stores = body.stores(Level::Element);
    let needed = body.closure(&body.stored(&stores), |_| false);
    let mut lanes: Vec<(String, String)> = Vec::new();
    for &i in &needed {
        let v = &body.values[i];
        let Origin::Load(l) = v.origin else { continue };
        if body.walk.steps(l) {
            lanes.push((v.name.clone(), load(body, code, width, l, &v.name)));
        } else {
            body.declare(code, i);
        }
    }
    for &s in &stores {
        code.line(format!("float s{s}_v[{width}];"));
    }
    code.line("#pragma unroll");
    code.open(format!("for (int lane = 0; lane < {width}; ++lane)"));
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
    stores.iter().for_each(|&s| store(body, code, width, s));
}

/// Reads a thread's elements of load `l`, and returns that of a lane.
fn load(body: &Body<'_>, code: &mut Code<'_>, width: usize, l: usize, name: &str) -> String {
    let id = &body.region.loads[l].view.buffer;
    let (dtype, p, at) = (code.dtype(id), code.pointer(id, false), body.walk.element(l));
    if dtype == DType::Bit {
        code.line(format!("const unsigned int {name}_b = {p}[({at}) / 8] >> ({at}) % 8;"));
        return format!("(float)({name}_b >> lane & 1)");
    }
    let four = vector_type(dtype);
    let mut parts = Vec::new();
    for h in (0..width).step_by(4) {
        let vector = if h == 0 { format!("{name}_4") } else { format!("{name}_{}", h + 4) };
        let from = further(&format!("{p} + {at}"), h);
        code.line(format!("const {four} {vector} = *reinterpret_cast<const {four}*>({from});"));
        parts.extend(["x", "y", "z", "w"].map(|c| format!("(float){vector}.{c}")));
    }
    code.line(format!("const float {name}_v[{width}] = {{{}}};", parts.join(", ")));
    format!("{name}_v[lane]")
}

/// Writes a thread's elements of store `s`.
fn store(body: &Body<'_>, code: &mut Code<'_>, width: usize, s: usize) {
    let id = &body.region.stores[s].view.buffer;
    let (dtype, p) = (code.dtype(id), code.pointer(id, true));
    let at = body.walk.element(body.region.loads.len() + s);
    if dtype == DType::Bit {
        let bits: Vec<String> = (0..width).map(|l| format!("(s{s}_v[{l}] != 0.0f) << {l}")).collect();
        code.line(format!("{p}[({at}) / 8] = (unsigned char)({});", bits.join(" | ")));
        return;
    }
    let four = vector_type(dtype);
    for h in (0..width).step_by(4) {
        let to = further(&format!("{p} + {at}"), h);
        let parts: Vec<String> = (h..h + 4).map(|l| converted(dtype, &format!("s{s}_v[{l}]"))).collect();
        code.line(format!("*reinterpret_cast<{four}*>({to}) = make_{four}({});", parts.join(", ")));
    }
}
