//! `slrc plan explain`

use crate::cli::Workspace;
use crate::{edit, partition, read};

/// Rows of the CSV: lower, upper, size.
fn rows(work: &Workspace, line: &str) -> Vec<(String, usize, usize, usize)> {
    let text = work.ok(line).stdout;
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("id,lower,upper,size"));
    let rows = lines.map(|l| {
        let cells: Vec<&str> = l.split(',').collect();
        let number = |i: usize| cells[i].parse().expect("a number");
        assert_eq!(cells.len(), 4, "{l}");
        (cells[0].to_string(), number(1), number(2), number(3))
    });
    rows.collect()
}

#[test]
fn buffers_for_solvers_need_what_the_plan_says() {
    let work = Workspace::new();
    for (model, options) in [
        ("mnist_mlp", "--modules 2"),
        ("mnist_cnn", "--modules 3"),
        ("mnist_cnn", "--modules 2 --reconcile exact"),
        ("mnist_vit", "--modules 2"),
        ("tokens_bert", "--modules 3 --optimizer adamw"),
    ] {
        partition(&work, model, options, "plan");
        let plan = read(&work.path("plan"));
        for m in &plan.modules {
            let rows = rows(&work, &format!("plan explain plan --csv --module {}", m.index));
            let live = |i: usize| rows.iter().filter(|r| (r.1..r.2).contains(&i)).map(|r| r.3).sum::<usize>();
            let most = (0..m.step.kernels.len()).map(live).max();
            assert_eq!(most, Some(m.step.live_bytes), "{model} {options} module {}", m.index);
            assert!(rows.iter().all(|r| r.1 < r.2 && r.2 <= m.step.kernels.len() && r.3.is_multiple_of(64) && r.3 > 0));
            let own = m.step.buffers.iter().map(|b| (b, b.live.expect("a live range")));
            let buffers = own.chain(plan.handed(m.index, &m.step));
            let first = |id: &str| buffers.clone().find(|(b, _)| b.id == id).expect("an arena buffer").1.first;
            assert!(rows.iter().all(|r| first(&r.0) == r.1));
        }
        // Without a module, the largest.
        let largest = plan.modules.iter().max_by_key(|m| m.step.arena_bytes).expect("a module").index;
        let own = format!("plan explain plan --csv --module {largest}");
        assert_eq!(rows(&work, "plan explain plan --csv"), rows(&work, &own));
    }
}

#[test]
fn what_is_live_at_the_peak() {
    let work = Workspace::new();
    partition(&work, "mnist_cnn", "--modules 2", "cnn");
    insta::assert_snapshot!("explain_mnist_cnn", work.ok("plan explain cnn --top 12").stdout);
    insta::assert_snapshot!("explain_mnist_cnn_module_1", work.ok("plan explain cnn --module 1 --top 6").stdout);
    partition(&work, "mnist_mlp", "--modules 2", "mlp");
    insta::assert_snapshot!("explain_mnist_mlp", work.ok("plan explain mlp").stdout);
}

#[test]
fn what_cannot_be_explained() {
    let work = Workspace::new();
    partition(&work, "mnist_mlp", "--modules 2", "a");
    for k in [0, 3] {
        work.fails(&format!("plan explain a --module {k}"), 2, &["modules 1 to 2"]);
    }
    work.fails("plan explain nowhere", 4, &["nowhere/plan.yaml"]);
    edit(&work, "a", |p| p.memory.arena = 0);
    work.fails("plan explain a", 4, &["does not hold"]);
}
