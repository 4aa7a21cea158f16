//! profile
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::compile;
use slrc_compiler::spec::SpecFile;
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::device::*;
use std::collections::BTreeMap;
use std::io::Read;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(format!("models/exports/{}.onnx.gz", a[1])).unwrap())
        .read_to_end(&mut bytes)
        .unwrap();
    let d = tempfile::tempdir().unwrap();
    std::fs::write(d.path().join("m.onnx"), bytes).unwrap();
    let file = OnnxFile::open(&d.path().join("m.onnx")).unwrap();
    let spec: SpecFile = slrc_plan::yaml::from_str(&a[2]).unwrap();
    let c = compile(&file, &spec, &mut |_, _| {}).unwrap();
    let threads = a.get(3).map(|x| x.parse().unwrap());
    let mut dev = CpuDevice::load(&c.plan, threads).unwrap();
    let mut rng = slrc_plan::random::Sequence::new(1, 2, 3);
    for p in &c.plan.parameters {
        let b = c.plan.buffers.iter().find(|b| b.id == p.buffer).unwrap();
        let v = c
            .modules
            .iter()
            .flat_map(|m| m.train.variables.iter().chain(&m.eval.variables))
            .find(|v| v.name == p.name)
            .unwrap();
        let data: Vec<u8> = (0..b.count())
            .flat_map(|_| {
                match v.init {
                    slrc_compiler::ir::graph::Init::Constant(x) => x as f32,
                    slrc_compiler::ir::graph::Init::Uniform(x) => rng.symmetric(x as f32),
                    slrc_compiler::ir::graph::Init::Normal(x) => rng.normal() * x as f32,
                }
                .to_le_bytes()
            })
            .collect();
        dev.write(b, &data);
    }
    for (k, id) in &c.names.constants {
        let b = c.plan.buffers.iter().find(|b| b.id == *id).unwrap();
        let data: Vec<u8> = match b.dtype {
            slrc_plan::DType::F32 => k.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            slrc_plan::DType::I32 => k.data.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
            _ => k.data.iter().map(|&x| x as u8).collect(),
        };
        dev.write(b, &data);
    }
    for i in &c.plan.inputs {
        let b = c.plan.buffers.iter().find(|b| b.id == i.buffer).unwrap();
        if b.dtype == slrc_plan::DType::F32 {
            let data: Vec<u8> = (0..b.count()).flat_map(|_| rng.normal().to_le_bytes()).collect();
            dev.write(b, &data);
        }
    }
    for s in &c.plan.scalars {
        let b = c.plan.buffers.iter().find(|b| b.id == s.buffer).unwrap();
        dev.write(b, &(0.01f32).to_le_bytes());
    }
    let mut by: BTreeMap<String, (f64, u64, usize)> = BTreeMap::new();
    let mut all: Vec<(f64, String)> = Vec::new();
    let mut total = f64::MAX;
    for round in 0..4 {
        let t = std::time::Instant::now();
        for m in &c.plan.modules {
            let mi = m.index;
            dev.profile(mi, ProgramKind::Step, StepContext { seed: 0, step: round }, &mut |k, s| {
                if round == 3 {
                    let name = match &k.run {
                        slrc_plan::KernelOp::Conv(c) => format!("conv {:?}", c.direction),
                        o => o.family().to_string(),
                    };
                    let e = by.entry(name.clone()).or_default();
                    e.0 += s;
                    e.1 += k.flops;
                    e.2 += 1;
                    let extra = match &k.run {
                        slrc_plan::KernelOp::Conv(c) => format!(
                            "{}x{}->{} {} k{}",
                            c.in_channels, c.geometry.input, c.out_channels, c.geometry.output, c.geometry.kernel
                        ),
                        slrc_plan::KernelOp::Map(r) | slrc_plan::KernelOp::Row(r) | slrc_plan::KernelOp::Reduce(r) => {
                            format!(
                                "{} r{:?} loads {} body {} stores {}",
                                r.space,
                                r.reduce,
                                r.loads.len(),
                                r.body.len(),
                                r.stores.len()
                            )
                        }
                        slrc_plan::KernelOp::Matmul(m) => format!(
                            "{} {}x{}x{} a{:?} b{:?} c{:?}",
                            m.batch, m.m, m.n, m.k, m.a.strides, m.b.strides, m.c.strides
                        ),
                        slrc_plan::KernelOp::Copy(c) => {
                            format!("{} from {:?} to {:?}", c.space, c.from.strides, c.to.strides)
                        }
                        _ => String::new(),
                    };
                    all.push((
                        s,
                        format!(
                            "m{mi} {} {name} {:.1} GF/s  {extra} {}",
                            k.id,
                            k.flops as f64 / s / 1e9,
                            k.nodes.join(",")
                        ),
                    ));
                }
            })
            .unwrap();
        }
        total = total.min(t.elapsed().as_secs_f64());
    }
    println!("step {:.1} ms", total * 1e3);
    for (n, (s, f, c)) in &by {
        println!("{n:20} {:8.1} ms {c:4} kernels {:7.1} GF/s", s * 1e3, *f as f64 / s / 1e9);
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (s, n) in all.iter().take(a.get(4).map_or(25, |x| x.parse().unwrap())) {
        println!("{:8.2} ms {}", s * 1e3, &n[..n.len().min(200)]);
    }
    let rss = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", rss.lines().filter(|l| l.starts_with("VmHWM")).collect::<String>());
}
