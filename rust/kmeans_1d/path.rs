//! The best path from 0 to n whose links are clusters: with a penalty for each link, and with k
//! links. The text at the top of the reference says why this finds it.

/// Where clusters begin, and n: 0 = b_0 < b_1 < ... < b_k = n.
pub(super) type Borders = Vec<u32>;

/// How much coarser a level is than the next one.
const STRIDE: usize = 8;

/// Sums of weights, weighted values and weighted squares up to a border, and the cost of the best
/// path that ends there.
#[derive(Clone, Copy, Default)]
struct Node {
    w: f64,
    s: f64,
    t: f64,
    best: f64,
}

/// How much less than the squares themselves the values between two borders cost as one cluster.
#[inline(always)]
fn gain(p: &Node, i: &Node) -> f64 {
    let (w, s) = (i.w - p.w, i.s - p.s);
    if w > 0.0 { s * s / w } else { 0.0 }
}

/// The cost of the values between two borders as one cluster.
fn cost(p: &Node, i: &Node) -> f64 {
    (i.t - p.t - gain(p, i)).max(0.0)
}

/// The best path up to `p` and on to `i`, without what depends on `i` alone.
#[inline(always)]
fn through(p: &Node, i: &Node) -> f64 {
    (p.best - p.t) - gain(p, i)
}

/// A candidate for the last border before others, and the first of those it is the best for.
#[derive(Clone, Copy)]
struct Candidate {
    border: u32,
    start: u32,
}

/// The borders of a row of values, and paths along them.
pub(super) struct Paths {
    nodes: Vec<Node>,
    parents: Vec<u32>,
    queue: Vec<Candidate>,
}

impl Paths {
    /// Of values `y` with weights `w`, summed from `middle` outwards.
    pub(super) fn new(y: &[f64], w: &[f64], middle: usize) -> Self {
        let mut nodes = vec![Node::default(); y.len() + 1];
        let mut sum = Node::default();
        let mut add = |i: usize| {
            sum.w += w[i];
            sum.s += w[i] * y[i];
            sum.t += w[i] * y[i] * y[i];
            sum
        };
        for i in middle..y.len() {
            nodes[i + 1] = add(i);
        }
        sum = Node::default();
        let mut add = |i: usize| {
            sum.w += w[i];
            sum.s += w[i] * y[i];
            sum.t += w[i] * y[i] * y[i];
            Node { w: -sum.w, s: -sum.s, t: -sum.t, best: 0.0 }
        };
        for i in (0..middle).rev() {
            nodes[i] = add(i);
        }
        Self::of(nodes)
    }

    fn of(nodes: Vec<Node>) -> Self {
        let parents = vec![0; nodes.len()];
        Self { nodes, parents, queue: Vec::new() }
    }

    /// The same where clusters begin at every `stride`-th value alone.
    fn every(&self, stride: usize) -> Self {
        let n = self.len();
        let starts = self.nodes[..n].iter().step_by(stride);
        Self::of(starts.chain(&self.nodes[n..]).copied().collect())
    }

    /// Number of values.
    fn len(&self) -> usize {
        self.nodes.len() - 1
    }

    fn cost(&self, p: u32, i: u32) -> f64 {
        cost(&self.nodes[p as usize], &self.nodes[i as usize])
    }

    fn path_cost(&self, path: &[u32]) -> f64 {
        path.windows(2).fold(0.0, |sum, link| sum + self.cost(link[0], link[1]))
    }

    /// The penalty that gives k clusters when they begin at every 8th, 64th, ... value alone.
    pub(super) fn first_penalty(&self, k: usize) -> f64 {
        let n = self.len();
        let mut strides = vec![STRIDE];
        while n / strides[strides.len() - 1] >= (8 * k).max(64) {
            strides.push(strides[strides.len() - 1] * STRIDE);
        }
        let wide = k as f64;
        // Of n normal values, k clusters cost about 2.7 n / k^2.
        let mut penalty = 4.0 * self.cost(0, n as u32) / (wide * wide * wide);
        for stride in strides[..strides.len() - 1].iter().rev() {
            penalty = self.every(*stride).search(k, penalty, k / 64).1;
        }
        penalty
    }

    /// The best path of k links (give or take `slack`), its penalty, and the number of passes.
    pub(super) fn search(&mut self, k: usize, penalty: f64, slack: usize) -> (Borders, f64, i32) {
        let n = self.len();
        if k == 1 {
            return (vec![0, n as u32], penalty, 0);
        }
        let mut bracket = Bracket::new(self);
        let (mut penalty, mut by_slope, mut passes) = (penalty, false, 0);
        loop {
            let path = self.path(penalty);
            passes += 1;
            let links = path.len() - 1;
            let ratio = links as f64 / k as f64;
            let scaled = penalty * (ratio * ratio * ratio);
            if links.abs_diff(k) <= slack {
                return (path, scaled, passes);
            }
            if by_slope && !bracket.holds(links) {
                return (bracket.spliced(k), penalty, passes);
            }
            bracket.narrow(self, path, penalty, k);
            by_slope = bracket.has_both_ends() || !bracket.admits(scaled);
            penalty = if by_slope { bracket.slope() } else { scaled };
        }
    }

    /// The path from 0 to n that is best with `penalty` for each link.
    fn path(&mut self, penalty: f64) -> Borders {
        let Self { nodes, parents, queue } = self;
        let n = nodes.len() - 1;
        queue.clear();
        queue.push(Candidate { border: 0, start: 1 });
        let mut head = 0;
        for i in 1..=n {
            while head + 1 < queue.len() && queue[head + 1].start as usize <= i {
                head += 1;
            }
            let parent = queue[head].border;
            let p = &nodes[parent as usize];
            let best = larger(nodes[i].t + through(p, &nodes[i]), p.best) + penalty;
            nodes[i].best = best;
            parents[i] = parent;
            if i < n {
                insert(queue, head, nodes, i);
            }
        }
        let mut path = vec![n as u32];
        while let Some(&last) = path.last()
            && last > 0
        {
            path.push(parents[last as usize]);
        }
        path.reverse();
        path
    }
}

#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

/// Puts `i` behind the candidates that remain the best for some border, if it is for one itself.
#[inline(always)]
fn insert(queue: &mut Vec<Candidate>, head: usize, nodes: &[Node], i: usize) {
    let new = nodes[i];
    let mut end = nodes.len();
    while queue.len() > head {
        let last = queue[queue.len() - 1];
        let (p, mut start) = (nodes[last.border as usize], (last.start as usize).max(i + 1));
        let better = |at: usize| through(&new, &nodes[at]) < through(&p, &nodes[at]);
        if better(start) {
            queue.pop();
            end = start;
            continue;
        }
        let mut step = 1;
        while start + step < end && !better(start + step) {
            start += step;
            step *= 2;
        }
        end = end.min(start + step);
        while end - start > 1 {
            let between = usize::midpoint(start, end);
            if better(between) { end = between } else { start = between }
        }
        break;
    }
    if queue.len() == head {
        end = i + 1;
    }
    if end < nodes.len() {
        queue.push(Candidate { border: i as u32, start: end as u32 });
    }
}

/// What is known of paths with fewer and with more links than wanted.
struct Bracket {
    few: Borders,
    /// None: a link for each value.
    many: Option<Borders>,
    links: usize,
    few_cost: f64,
    many_cost: f64,
    high: f64,
    low: f64,
}

impl Bracket {
    fn new(paths: &Paths) -> Self {
        let n = paths.len();
        let few_cost = paths.cost(0, n as u32);
        let (high, low) = (f64::INFINITY, 0.0);
        let few = vec![0, n as u32];
        Self { few, many: None, links: n, few_cost, many_cost: 0.0, high, low }
    }

    /// Whether this number of links is between those known.
    fn holds(&self, links: usize) -> bool {
        self.few.len() - 1 < links && links < self.links
    }

    /// Whether a path with fewer links and one with more came up.
    fn has_both_ends(&self) -> bool {
        self.low > 0.0 && self.high < f64::INFINITY
    }

    /// Whether this penalty may give a number of links between those known.
    fn admits(&self, penalty: f64) -> bool {
        self.low < penalty && penalty < self.high
    }

    fn narrow(&mut self, paths: &Paths, path: Borders, penalty: f64, k: usize) {
        let links = path.len() - 1;
        let inside = self.holds(links);
        if links < k {
            self.high = self.high.min(penalty);
            if inside {
                self.few_cost = paths.path_cost(&path);
                self.few = path;
            }
        } else {
            self.low = self.low.max(penalty);
            if inside {
                self.many_cost = paths.path_cost(&path);
                self.many = Some(path);
                self.links = links;
            }
        }
    }

    /// The penalty with which both paths cost the same.
    fn slope(&self) -> f64 {
        (self.few_cost - self.many_cost) / (self.links + 1 - self.few.len()) as f64
    }

    /// A path of k links, the beginning of `many` and the end of `few`, both best for one penalty.
    fn spliced(&self, k: usize) -> Borders {
        let many = |j: usize| self.many.as_ref().map_or(j as u32, |many| many[j]);
        let more = k + 1 - self.few.len();
        let mut at = 0;
        while many(at + more + 1) > self.few[at + 1] {
            at += 1;
        }
        (0..=at + more).map(many).chain(self.few[at + 1..].iter().copied()).collect()
    }
}
