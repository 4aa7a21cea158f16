//! `search import|plan COUNT SEED KEEP FILE..`: runs COUNT seeded mutations of the files, in turn, and prints what came
//! of them, as `name value` lines. Inputs that panic or take more than two seconds are written into the folder KEEP.
//! The case under way is there as `running`, should the process die of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use slrc_fuzz::{bare, change_model, change_plan, import, plan, with_known_inputs};

/// Longest that an input may take, in seconds.
const SLOW: f64 = 2.0;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [target, count, seed, keep, files @ ..] = &args[..] else {
        panic!("search import|plan COUNT SEED KEEP FILE..");
    };
    let (count, seed): (u64, u64) = (count.parse().expect("COUNT"), seed.parse().expect("SEED"));
    let keep = PathBuf::from(keep);
    std::fs::create_dir_all(&keep).expect("KEEP can be made");
    let is_import = match target.as_str() {
        "import" => true,
        "plan" => false,
        other => panic!("`{other}` is neither import nor plan"),
    };
    let read = |f: &String| std::fs::read(f).unwrap_or_else(|e| panic!("{f}: {e}"));
    let source = |f: &String| {
        let input = |i: usize| std::fs::read(Path::new(f).with_file_name(format!("input_{i}.pb"))).ok();
        if is_import { bare(&with_known_inputs(&read(f), &input)) } else { read(f) }
    };
    let sources: Vec<Vec<u8>> = files.iter().map(source).collect();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut panics, mut slow, mut longest) = (0, 0, 0.0f64);
    let mut reached = std::collections::BTreeMap::<&str, u64>::new();
    for case in 0..count {
        let source = &sources[(case % sources.len() as u64) as usize];
        let seed = seed.wrapping_mul(1 << 32).wrapping_add(case);
        let input = if is_import {
            change_model(source, seed)
        } else {
            change_plan(&String::from_utf8_lossy(source), seed).into_bytes()
        };
        std::fs::write(keep.join("running"), &input).expect("KEEP can be written");
        let start = Instant::now();
        let run = || if is_import { import(&input) } else { plan(&String::from_utf8_lossy(&input)) };
        let end = catch_unwind(AssertUnwindSafe(run));
        let seconds = start.elapsed().as_secs_f64();
        longest = longest.max(seconds);
        let name = format!("{target}-{seed}");
        if seconds > SLOW {
            slow += 1;
            std::fs::write(keep.join(format!("slow-{name}")), &input).expect("KEEP can be written");
        }
        match end {
            Ok(end) => *reached.entry(end).or_default() += 1,
            Err(_) => {
                panics += 1;
                std::fs::write(keep.join(format!("panic-{name}")), &input).expect("KEEP can be written");
            }
        }
    }
    let _ = std::fs::remove_file(keep.join("running"));
    println!("executions {count}\npanics {panics}\nslow {slow}\nlongest {longest:.2}");
    for (end, n) in reached {
        println!(
            "{} {n}",
            if end == "cut" || end == "accepted" { end.to_string() } else { format!("not-{}", end.replace(" ", "-")) }
        );
    }
}
