//! The prefix cache's index: which sequence holds the longest beginning of a new prompt.
//!
//! A radix tree. A node is a run of tokens that no held sequence leaves in its middle, so nodes meet
//! only where sequences part, and there are fewer than two for each sequence. A sequence may *end*
//! anywhere inside a node: when two generate the same text in step, or one repeats what another left
//! behind, a new token moves a number, and the tree stays as it is.
//!
//! Children are found by the first token of their run, which is part of the key, in a sorted list.
//! There is no hash: since the answer is exact to the token, a hint could cover that one token only,
//! and would be no shorter than it. So no answer can rest on a hash, and no client can choose prompts
//! whose hashes collide. Everything behind the first token is proved by comparing tokens.
//!
//! What this does not do: it neither asks an engine what it holds nor decides what to evict, and
//! knows no time. The caller tells it each change, and what the engine really keeps (a sliding
//! window, say) is the caller's to check.

use crate::engine::{SequenceId, Token};

pub mod habit;
#[cfg(test)]
mod tests;

/// Shorter beginnings are computed faster than they are looked after.
pub const LEAST_KEPT: usize = 16;

type NodeId = usize;

/// The one node without tokens, where every sequence begins.
const ROOT: NodeId = 0;

/// What the sequences of one engine context hold, with common beginnings stored once.
///
/// Sequence ids are dense numbers (`0..max_sequences`): memory goes with the highest one used.
#[derive(Clone, Debug)]
pub struct PrefixTree {
    nodes: Vec<Node>,
    /// Nodes not in use, all of them empty.
    free: Vec<NodeId>,
    /// By sequence id.
    places: Vec<Place>,
}

/// The longest beginning of a prompt that is held somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Tokens of the prompt, from its first on.
    pub length: usize,
    /// All sequences that hold these tokens, in no particular order; none if `length` is 0.
    pub holders: Vec<SequenceId>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    parent: NodeId,
    /// Position of `tokens[0]` in the sequences that pass here.
    start: usize,
    tokens: Vec<Token>,
    /// Ordered by the first token of each. Two or more, or none: a single child would belong into
    /// this node (the root may have any number).
    children: Vec<(Token, NodeId)>,
    /// Sequences whose last token lies here.
    ends: Vec<SequenceId>,
}

impl Node {
    /// The position behind the last token.
    fn end(&self) -> usize {
        self.start + self.tokens.len()
    }

    fn child(&self, first: Token) -> Option<NodeId> {
        let index = self.children.binary_search_by_key(&first, |&(token, _)| token).ok()?;
        Some(self.children[index].1)
    }
}

/// Where a sequence ends.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The node of its last token; the root while it holds nothing.
    node: NodeId,
    /// Tokens it holds.
    held: usize,
}

impl Default for PrefixTree {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], free: Vec::new(), places: Vec::new() }
    }
}

impl PrefixTree {
    /// A tree of no sequences.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to what `sequence` holds; it holds nothing until the first call.
    ///
    /// Constant time for each token that no other sequence holds at the same place already, and for
    /// each step along what another one holds.
    pub fn extend(&mut self, sequence: SequenceId, tokens: &[Token]) {
        let old = self.place(sequence);
        let (mut node, met) = self.descend(old, tokens);
        let rest = &tokens[met - old.held..];
        if !rest.is_empty() {
            if met < self.nodes[node].end() {
                self.split(node, met);
            }
            if node != ROOT && self.nodes[node].children.is_empty() {
                self.nodes[node].tokens.extend_from_slice(rest);
            } else {
                node =
                    self.insert(Node { parent: node, start: met, tokens: rest.to_vec(), ..Node::default() });
            }
        }
        self.move_end(sequence, Place { node, held: old.held + tokens.len() });
    }

    /// Cuts a sequence to its first `len` tokens; 0 removes it. One that is no longer stays as it is.
    pub fn truncate(&mut self, sequence: SequenceId, len: usize) {
        let old = self.place(sequence);
        if len >= old.held {
            return;
        }
        let mut node = old.node;
        while node != ROOT && self.nodes[node].start >= len {
            node = self.nodes[node].parent;
        }
        self.move_end(sequence, Place { node, held: len });
        self.prune(old.node);
    }

    /// Afterwards `to` holds what `from` held, and `from` holds nothing. `to` is free before: what it
    /// held is given up otherwise.
    pub fn rename(&mut self, from: SequenceId, to: SequenceId) {
        if from == to {
            return;
        }
        self.truncate(to, 0);
        let place = self.place(from);
        self.move_end(from, Place::default());
        self.move_end(to, place);
    }

    /// Number of tokens that `sequence` holds.
    pub fn held(&self, sequence: SequenceId) -> usize {
        self.place(sequence).held
    }

    /// The longest beginning of `tokens` that any sequence holds, and all sequences that hold that
    /// much of it, be it as a part of more.
    pub fn longest(&self, tokens: &[Token]) -> Match {
        let (node, length) = self.descend(Place::default(), tokens);
        let mut holders = Vec::new();
        if length > 0 {
            let mut below = vec![node];
            while let Some(id) = below.pop() {
                let Node { children, ends, .. } = &self.nodes[id];
                holders.extend(ends.iter().filter(|&&sequence| self.held(sequence) >= length));
                below.extend(children.iter().map(|&(_, child)| child));
            }
        }
        Match { length, holders }
    }

    fn place(&self, sequence: SequenceId) -> Place {
        self.places.get(sequence as usize).copied().unwrap_or_default()
    }

    /// Follows `tokens` from a place as far as the tree holds them: the node that the last one lies in,
    /// and the position behind it.
    fn descend(&self, from: Place, tokens: &[Token]) -> (NodeId, usize) {
        let Place { mut node, held: mut position } = from;
        loop {
            let ahead = &self.nodes[node].tokens[position - self.nodes[node].start..];
            let rest = &tokens[position - from.held..];
            let equal = equal_tokens(ahead, rest);
            position += equal;
            if equal < ahead.len() {
                return (node, position);
            }
            match rest.get(equal).and_then(|&first| self.nodes[node].child(first)) {
                Some(child) => node = child,
                None => return (node, position),
            }
        }
    }

    /// Lets a sequence end elsewhere. Changes no tokens.
    fn move_end(&mut self, sequence: SequenceId, to: Place) {
        let from = self.place(sequence);
        let index = sequence as usize;
        if index >= self.places.len() {
            if to.held == 0 {
                return;
            }
            self.places.resize(index + 1, Place::default());
        }
        self.places[index] = to;
        if from.node == to.node {
            return;
        }
        if from.node != ROOT {
            self.nodes[from.node].ends.retain(|&other| other != sequence);
        }
        if to.node != ROOT {
            self.nodes[to.node].ends.push(sequence);
        }
    }

    /// Puts a node below its parent.
    fn insert(&mut self, node: Node) -> NodeId {
        let (parent, first) = (node.parent, node.tokens[0]);
        let id = if let Some(id) = self.free.pop() {
            self.nodes[id] = node;
            id
        } else {
            self.nodes.push(node);
            self.nodes.len() - 1
        };
        let siblings = &mut self.nodes[parent].children;
        let index = siblings.partition_point(|&(token, _)| token < first);
        siblings.insert(index, (first, id));
        id
    }

    /// Ends a node at `position`, inside it, and makes the rest its only child: the caller adds another.
    fn split(&mut self, id: NodeId, position: usize) {
        let places = &self.places;
        let node = &mut self.nodes[id];
        let tokens = node.tokens.split_off(position - node.start);
        give_back_room(&mut node.tokens);
        let children = std::mem::take(&mut node.children);
        let (ends, stay): (Vec<_>, Vec<_>) =
            node.ends.drain(..).partition(|&sequence| places[sequence as usize].held > position);
        node.ends = stay;
        let rest = self.insert(Node { parent: id, start: position, tokens, children, ends });
        self.adopt(rest);
    }

    /// Removes what no sequence holds any more, after one that ended in the node has left it.
    fn prune(&mut self, id: NodeId) {
        if !self.nodes[id].children.is_empty() {
            return;
        }
        let reach = self.nodes[id].ends.iter().map(|&sequence| self.held(sequence)).max();
        if let Some(reach) = reach {
            let node = &mut self.nodes[id];
            node.tokens.truncate(reach - node.start);
            give_back_room(&mut node.tokens);
            return;
        }
        let parent = self.release(id).parent;
        self.nodes[parent].children.retain(|&(_, child)| child != id);
        if parent == ROOT {
            return;
        }
        if let [(_, only)] = self.nodes[parent].children[..] {
            let Node { tokens, children, ends, .. } = self.release(only);
            let node = &mut self.nodes[parent];
            node.tokens.extend(tokens);
            node.children = children;
            node.ends.extend(ends);
            self.adopt(parent);
        }
    }

    /// Tells a node's children and sequences where they are now.
    fn adopt(&mut self, id: NodeId) {
        for index in 0..self.nodes[id].children.len() {
            let (_, child) = self.nodes[id].children[index];
            self.nodes[child].parent = id;
        }
        for &sequence in &self.nodes[id].ends {
            self.places[sequence as usize].node = id;
        }
    }

    /// Takes a node out of use. Its parent still lists it.
    fn release(&mut self, id: NodeId) -> Node {
        self.free.push(id);
        std::mem::take(&mut self.nodes[id])
    }

    /// Everything that must always be true; the first thing that is not, in words.
    ///
    /// Looks at each node and each sequence, not at each token.
    pub fn check_integrity(&self) -> Result<(), String> {
        let root = &self.nodes[ROOT];
        if !root.tokens.is_empty() || !root.ends.is_empty() || root.start != 0 {
            return Err("the root holds tokens, or a sequence ends there".into());
        }
        let mut seen = vec![false; self.nodes.len()];
        seen[ROOT] = true;
        let mut ended = vec![false; self.places.len()];
        let mut below = vec![ROOT];
        while let Some(id) = below.pop() {
            self.check_node(id, &mut ended)?;
            for &(first, child) in &self.nodes[id].children {
                match seen.get_mut(child) {
                    None => return Err(format!("node {id} lists {child}, which does not exist")),
                    Some(seen) if *seen => return Err(format!("node {child} is reached twice")),
                    Some(seen) => *seen = true,
                }
                let node = &self.nodes[child];
                if node.parent != id || node.start != self.nodes[id].end() {
                    return Err(format!("node {child} does not continue node {id}, which lists it"));
                }
                if node.tokens.first() != Some(&first) {
                    return Err(format!("node {child} does not begin with token {first}, its key"));
                }
                below.push(child);
            }
        }
        for &id in &self.free {
            match seen.get_mut(id) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(format!("node {id} is free and in use, or free twice")),
            }
            let node = &self.nodes[id];
            if node.tokens.capacity() + node.children.capacity() + node.ends.capacity() > 0 {
                return Err(format!("node {id} is free, and keeps memory"));
            }
        }
        if let Some(id) = seen.iter().position(|&seen| !seen) {
            return Err(format!("node {id} is neither in the tree nor free"));
        }
        let lost = self.places.iter().zip(&ended).position(|(place, &ended)| (place.held > 0) != ended);
        lost.map_or(Ok(()), |sequence| Err(format!("no node lists the end of sequence {sequence}")))
    }

    /// What concerns one node, apart from its children. Marks in `ended` the sequences that end there.
    fn check_node(&self, id: NodeId, ended: &mut [bool]) -> Result<(), String> {
        let node = &self.nodes[id];
        if !node.children.is_sorted_by(|(left, _), (right, _)| left < right) {
            return Err(format!("the children of node {id} are not in order"));
        }
        let mut reach = node.start;
        for &sequence in &node.ends {
            let place = self.place(sequence);
            if place.node != id || place.held <= node.start || place.held > node.end() {
                return Err(format!("sequence {sequence} does not end in node {id}, which lists it"));
            }
            if std::mem::replace(&mut ended[sequence as usize], true) {
                return Err(format!("node {id} lists sequence {sequence} twice"));
            }
            reach = reach.max(place.held);
        }
        match node.children.len() {
            _ if id == ROOT => Ok(()),
            0 if reach < node.end() => Err(format!("nobody holds the last tokens of node {id}")),
            1 => Err(format!("node {id} and its only child are one")),
            _ => Ok(()),
        }
    }
}

/// Number of tokens that two runs have in common from their beginning.
fn equal_tokens(left: &[Token], right: &[Token]) -> usize {
    /// Blocks compare as memory, several tokens at once.
    const BLOCK: usize = 64;
    let length = left.len().min(right.len());
    let (left, right) = (&left[..length], &right[..length]);
    let blocks = left.chunks_exact(BLOCK).zip(right.chunks_exact(BLOCK));
    let equal = BLOCK * blocks.take_while(|(left, right)| left == right).count();
    equal + left[equal..].iter().zip(&right[equal..]).take_while(|(left, right)| left == right).count()
}

/// Frees the room that a run will hardly need again, and keeps enough to grow a little.
fn give_back_room(tokens: &mut Vec<Token>) {
    if tokens.capacity() / 4 > tokens.len() {
        tokens.shrink_to(2 * tokens.len());
    }
}
