//! The minimum cut of a network, by Dinic's method: E. A. Dinic, "Algorithm for solution of a problem of maximum flow
//! in networks with power estimation", 1970.
//!
//! Which of several minimum cuts is found does not depend on the order of edges: it is the one nearest to the source.

/// Edges with capacities, each beside its reverse.
pub(super) struct Network {
    /// Of every node, the latest edge out of it.
    latest: Vec<u32>,
    edges: Vec<Edge>,
}

struct Edge {
    to: u32,
    /// Capacity left.
    left: u64,
    /// The edge out of the same node that was added before.
    earlier: u32,
}

const NONE: u32 = u32::MAX;

impl Network {
    pub(super) fn new(nodes: usize) -> Network {
        Network { latest: vec![NONE; nodes], edges: Vec::new() }
    }

    pub(super) fn add(&mut self, from: usize, to: usize, capacity: u64) {
        for (from, to, left) in [(from, to, capacity), (to, from, 0)] {
            let earlier = std::mem::replace(&mut self.latest[from], self.edges.len() as u32);
            self.edges.push(Edge { to: to as u32, left, earlier });
        }
    }

    /// By node, whether it is on the source's side of the minimum cut nearest to the source. What can flow is used up.
    pub(super) fn source_side(&mut self, source: usize, sink: usize) -> Vec<bool> {
        loop {
            let distance = self.distances(source, sink);
            if distance[sink] == NONE {
                return distance.into_iter().map(|d| d != NONE).collect();
            }
            self.fill(source, sink, &distance);
        }
    }

    /// Edges from the source to every node along what has capacity left, as far as the sink is away.
    fn distances(&self, source: usize, sink: usize) -> Vec<u32> {
        let mut distance = vec![NONE; self.latest.len()];
        distance[source] = 0;
        let mut reached = vec![source];
        let mut next = 0;
        while next < reached.len() && distance[sink] == NONE {
            let from = reached[next];
            next += 1;
            let mut e = self.latest[from];
            while e != NONE {
                let edge = &self.edges[e as usize];
                let to = edge.to as usize;
                if edge.left > 0 && distance[to] == NONE {
                    distance[to] = distance[from] + 1;
                    reached.push(to);
                }
                e = edge.earlier;
            }
        }
        distance
    }

    /// Sends as much as can flow along shortest paths.
    fn fill(&mut self, source: usize, sink: usize, distance: &[u32]) {
        // Edges before these are used up, or lead nowhere.
        let mut current = self.latest.clone();
        let mut path: Vec<u32> = Vec::new();
        loop {
            let at = path.last().map_or(source, |&e| self.edges[e as usize].to as usize);
            if at == sink {
                let left = |e: &u32| self.edges[*e as usize].left;
                let flow = path.iter().map(left).min().expect("invariant: the sink is not the source");
                for &e in &path {
                    self.edges[e as usize].left -= flow;
                    self.edges[e as usize ^ 1].left += flow;
                }
                let full = path.iter().position(|&e| self.edges[e as usize].left == 0);
                path.truncate(full.expect("invariant: the least is used up"));
                continue;
            }
            let e = current[at];
            if e == NONE {
                // A dead end: whoever led here looks further.
                let Some(back) = path.pop() else { return };
                let from = self.edges[back as usize ^ 1].to as usize;
                current[from] = self.edges[back as usize].earlier;
                continue;
            }
            let edge = &self.edges[e as usize];
            if edge.left > 0 && distance[edge.to as usize] == distance[at] + 1 {
                path.push(e);
            } else {
                current[at] = edge.earlier;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to part the nodes: the least capacity, and of what takes no more the fewest nodes by the source.
    fn by_force(nodes: usize, edges: &[(usize, usize, u64)]) -> Vec<bool> {
        let with = |set: u32, i: usize| set >> i & 1 == 1;
        let cost = |set: u32| -> u64 {
            edges.iter().filter(|(a, b, _)| with(set, *a) && !with(set, *b)).map(|(_, _, c)| c).sum()
        };
        let sets = (0..1u32 << nodes).filter(|&s| with(s, 0) && !with(s, nodes - 1));
        let best = sets.min_by_key(|&s| (cost(s), s.count_ones())).expect("some cut");
        (0..nodes).map(|i| with(best, i)).collect()
    }

    #[test]
    fn the_cut_is_the_least_and_nearest_to_the_source() {
        let mut rng = slrc_plan::random::Sequence::new(3, 0, 0);
        for _ in 0..200 {
            let nodes = 3 + rng.word() as usize % 6;
            let mut draw = |below: usize| rng.word() as usize % below;
            let edges: Vec<(usize, usize, u64)> =
                (0..2 * nodes).map(|_| (draw(nodes), draw(nodes), draw(5) as u64)).filter(|(a, b, _)| a != b).collect();
            let mut network = Network::new(nodes);
            edges.iter().for_each(|&(a, b, c)| network.add(a, b, c));
            assert_eq!(network.source_side(0, nodes - 1), by_force(nodes, &edges), "{edges:?}");
        }
    }
}
