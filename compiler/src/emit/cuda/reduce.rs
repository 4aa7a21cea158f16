//! Reductions along any dimensions: one pass over the elements, then work on what is left.
//!
//! A block takes a strip of kept positions and a range of reduced ones; its threads sum in a fixed order, then combine
//! in a fixed tree. Where the plan splits the reduced positions, the last block of a strip to finish adds the groups in
//! order. No sum is made of atomics: the result does not depend on how blocks are scheduled.

use slrc_plan::region::{Level, Region};
use slrc_plan::statement::{Arg, Combine};

use crate::emit::cuda::body::{Body, Origin, arg_text, combined, identity};
use crate::emit::cuda::code::{BLOCK, Call, Code, Table, index_type, number};

struct Reduce<'a> {
    body: Body<'a>,
    ty: &'static str,
    kept: Vec<usize>,
    reduced: Vec<usize>,
    /// Kept positions a block handles side by side.
    width: usize,
    reductions: Reductions,
}

/// Reduction values of a region with how they combine, and what: a name or a number.
pub(super) struct Reductions {
    /// Those of what varies along the reduced dimensions.
    pub(super) accumulated: Vec<(usize, Combine, String)>,
    /// Those of what does not.
    constant: Vec<(usize, Combine, String)>,
}

impl Reductions {
    pub(super) fn of(body: &Body<'_>) -> Reductions {
        let (mut accumulated, mut constant) = (Vec::new(), Vec::new());
        for i in body.reductions(1) {
            let Origin::Reduce(c, arg) = &body.values[i].origin else { continue };
            let varies = matches!(arg, Arg::Value(v) if body.value(v).level == Level::Element);
            if varies { &mut accumulated } else { &mut constant }.push((i, *c, arg_text(arg)));
        }
        Reductions { accumulated, constant }
    }

    /// What follows the reductions of the kept element `position`, and the stores of it; what is accumulated is
    /// declared.
    pub(super) fn tail(&self, code: &mut Code<'_>, body: &Body<'_>, ty: &str) {
        let (kept, reduced) = (body.walk.dimensions(false), body.walk.dimensions(true));
        body.walk.coordinates(code, ty, "position", &kept);
        for (i, c, arg) in &self.constant {
            let value = match c {
                Combine::Sum => format!("{arg} * {}", number(body.walk.count(&reduced) as f32)),
                Combine::Max => arg.clone(),
            };
            let needs = body.values[*i].needs.clone();
            for v in body.closure(&needs, |_| false) {
                body.declare(code, v);
            }
            code.line(format!("const float {} = {value};", body.values[*i].name));
        }
        let stores = body.stores(Level::Kept);
        let is_reduction = |i: usize| matches!(body.values[i].origin, Origin::Reduce(..));
        let mut known: Vec<usize> = Vec::new();
        for (i, ..) in &self.constant {
            known.extend(body.closure(&body.values[*i].needs, |_| false));
        }
        let needed = body.closure(&body.stored(&stores), |v| matches!(v.origin, Origin::Reduce(..)));
        for i in needed {
            if !is_reduction(i) && !known.contains(&i) {
                body.declare(code, i);
            }
        }
        stores.iter().for_each(|&s| body.store(code, s));
    }
}

pub(super) fn emit(table: &Table<'_>, r: &Region) -> Vec<Call> {
    let body = Body::new(r);
    let (kept, reduced) = (body.walk.dimensions(false), body.walk.dimensions(true));
    let kept_count = body.walk.count(&kept);
    // Threads side by side read side by side: along kept positions where those are innermost.
    let columns = body.walk.reduced.last() == Some(&false);
    let width = if columns { kept_count.next_power_of_two().min(32) } else { 1 };
    let ty = index_type(body.walk.end);
    let reductions = Reductions::of(&body);
    let reduce = Reduce { body, ty, kept, reduced, width, reductions };
    match &r.split {
        None => vec![reduce.single(table)],
        Some(s) => vec![reduce.groups(table, s.count, &s.partials.buffer, s.partials.offset)],
    }
}

impl Reduce<'_> {
    fn kept_count(&self) -> usize {
        self.body.walk.count(&self.kept)
    }

    fn reduced_count(&self) -> usize {
        self.body.walk.count(&self.reduced)
    }

    fn strips(&self) -> usize {
        self.kept_count().div_ceil(self.width)
    }

    fn single(&self, table: &Table<'_>) -> Call {
        let mut code = Code::new(table);
        self.body.describe(&mut code);
        self.sum_elements(&mut code, &format!("const {0} begin = 0, end = {1};", self.ty, self.reduced_count()));
        code.open("if (active && turn == 0)");
        for (i, (v, ..)) in self.reductions.accumulated.iter().enumerate() {
            code.line(format!("const float {} = part[{i}][threadIdx.x];", self.body.values[*v].name));
        }
        self.reductions.tail(&mut code, &self.body, self.ty);
        code.close();
        code.finish("reduce", BLOCK, [self.strips(), 1, 1])
    }

    fn groups(&self, table: &Table<'_>, count: usize, partials: &str, offset: usize) -> Call {
        let mut code = Code::new(table);
        self.body.describe(&mut code);
        code.formula(format!("in {count} groups, which the last block to finish sums in order"));
        let each = self.reduced_count().div_ceil(count);
        self.sum_elements(
            &mut code,
            &format!(
                "const {0} begin = blockIdx.y * {each}, end = min(({0})(begin + {each}), ({0}){1});",
                self.ty,
                self.reduced_count()
            ),
        );
        let (n, kept) = (self.reductions.accumulated.len(), self.kept_count());
        let p = code.pointer(partials, true);
        code.open("if (active && turn == 0)");
        for i in 0..n {
            code.line(format!(
                "{p}[{offset} + (blockIdx.y * {n} + {i}) * {kept} + position] = part[{i}][threadIdx.x];"
            ));
        }
        code.close();
        code.last_block("blockIdx.x", count);
        code.open("if (active && turn == 0)");
        for (i, (v, c, _)) in self.reductions.accumulated.iter().enumerate() {
            let name = &self.body.values[*v].name;
            code.line(format!("float {name} = {};", identity(*c)));
            // Unrolled further, loads of what follows are moved in between, and ptxas spills.
            code.line("#pragma unroll 4");
            code.open(format!("for (int group = 0; group < {count}; ++group)"));
            let part = format!("{p}[{offset} + (group * {n} + {i}) * {kept} + position]");
            code.line(format!("{name} = {};", combined(*c, name, &part)));
            code.close();
        }
        self.reductions.tail(&mut code, &self.body, self.ty);
        code.close();
        code.finish("reduce", BLOCK, [self.strips(), count, 1])
    }

    /// Kept-level values that do not depend on a reduction.
    fn early(&self, i: usize) -> bool {
        let v = &self.body.values[i];
        v.level == Level::Kept && v.stage == 0
    }

    /// Sums this thread's elements and combines the block's: the results end in `part[i]` of the threads with `turn` 0.
    fn sum_elements(&self, code: &mut Code<'_>, range: &str) {
        let (ty, width) = (self.ty, self.width);
        let turns = BLOCK / width;
        let n = self.reductions.accumulated.len();
        if n > 0 {
            code.shared("float", "part", &[n, BLOCK]);
        }
        code.line(format!("const {ty} position = ({ty})blockIdx.x * {width} + threadIdx.x % {width};"));
        code.line(format!("const int turn = threadIdx.x / {width};"));
        code.line(format!("const bool active = position < {};", self.kept_count()));
        code.line(range);
        for (i, (_, c, _)) in self.reductions.accumulated.iter().enumerate() {
            code.line(format!("float a{i} = {};", identity(*c)));
        }
        code.open("if (active)");
        self.body.walk.coordinates(code, ty, "position", &self.kept);
        let stores = self.body.stores(Level::Element);
        let mut targets = self.body.stored(&stores);
        targets.extend(self.reductions.accumulated.iter().map(|(_, _, arg)| arg.clone()));
        let needed = self.body.closure(&targets, |_| false);
        for &i in needed.iter().filter(|&&i| self.early(i)) {
            self.body.declare(code, i);
        }
        code.open(format!("for ({ty} r = begin + turn; r < end; r += {turns})"));
        self.body.walk.coordinates(code, ty, "r", &self.reduced);
        for &i in needed.iter().filter(|&&i| !self.early(i)) {
            self.body.declare(code, i);
        }
        for (i, (_, c, arg)) in self.reductions.accumulated.iter().enumerate() {
            code.line(format!("a{i} = {};", combined(*c, &format!("a{i}"), arg)));
        }
        stores.iter().for_each(|&s| self.body.store(code, s));
        code.close();
        code.close();
        if n == 0 {
            return;
        }
        for i in 0..n {
            code.line(format!("part[{i}][threadIdx.x] = a{i};"));
        }
        code.line("__syncthreads();");
        if turns > 1 {
            code.open(format!("for (int half = {}; half > 0; half /= 2)", turns / 2));
            code.open("if (turn < half)");
            for (i, (_, c, _)) in self.reductions.accumulated.iter().enumerate() {
                let (a, b) = (format!("part[{i}][threadIdx.x]"), format!("part[{i}][threadIdx.x + half * {width}]"));
                code.line(format!("{a} = {};", combined(*c, &a, &b)));
            }
            code.close();
            code.line("__syncthreads();");
            code.close();
        }
    }
}
