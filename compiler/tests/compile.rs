//! Compiling every model in the repository.

mod common;

use slrc_compiler::pipeline::compile;
use slrc_compiler::spec::SpecFile;

#[test]
fn dbg() {
    let which = std::env::var("MODEL").unwrap_or_else(|_| "mnist_cnn".into());
    let file = if common::SMALL.contains(&which.as_str()) { common::small(&which) } else { common::export(&which) };
    let spec: SpecFile =
        slrc_plan::yaml::from_str(&std::env::var("SPEC").unwrap_or_else(|_| "{}".into())).expect("spec");
    let t = std::time::Instant::now();
    let c = compile(&file, &spec, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    println!("compiled in {:?}", t.elapsed());
    for m in &c.plan.modules {
        println!(
            "{} {} .. {} params {} head {} arena {:.1} MB (live {:.1}) eval {:.1} MB kernels {} flops {:.2} G",
            m.index,
            m.first,
            m.last,
            m.parameters,
            m.head,
            m.step.arena_bytes as f64 / 1e6,
            m.step.live_bytes as f64 / 1e6,
            m.eval.arena_bytes as f64 / 1e6,
            m.step.kernels.len(),
            m.step.flops as f64 / 1e9
        );
    }
    println!("{:?} peak {:.1} MB", c.plan.memory, c.plan.memory.peak() as f64 / 1e6);
    println!("cuts possible: {}", c.candidates.cuts.iter().map(|c| c.node.as_str()).collect::<Vec<_>>().join(" | "));
    if let Ok(out) = std::env::var("OUT") {
        std::fs::write(out, slrc_plan::yaml::to_string(&c.plan).unwrap()).unwrap();
    }
}
