use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// A tree of these sequences, numbered from 0.
fn tree_of(sequences: &[&[Token]]) -> PrefixTree {
    let mut tree = PrefixTree::new();
    for (sequence, tokens) in sequences.iter().enumerate() {
        tree.extend(sequence as SequenceId, tokens);
        tree.check_integrity().unwrap();
    }
    tree
}

/// The answer of `longest`, its holders in order.
fn longest(tree: &PrefixTree, tokens: &[Token]) -> (usize, Vec<SequenceId>) {
    let Match { length, mut holders } = tree.longest(tokens);
    holders.sort_unstable();
    (length, holders)
}

impl PrefixTree {
    /// Number of tokens of `sequence` that no other sequence holds at the same place.
    fn exclusive(&self, sequence: SequenceId) -> usize {
        let place = self.place(sequence);
        let node = &self.nodes[place.node];
        if !node.children.is_empty() {
            return 0;
        }
        // Whatever lies above is shared: nodes end where sequences part.
        let others = node.ends.iter().filter(|&&other| other != sequence).map(|&other| self.held(other));
        place.held.saturating_sub(others.max().unwrap_or(node.start))
    }

    /// Number of tokens in the tree, shared ones counted once.
    fn tokens(&self) -> usize {
        self.nodes.iter().map(|node| node.tokens.len()).sum()
    }
}

/// Nodes in use, without the root.
fn nodes(tree: &PrefixTree) -> usize {
    tree.nodes.len() - tree.free.len() - 1
}

#[test]
fn an_empty_tree_holds_nothing() {
    let tree = PrefixTree::new();
    assert_eq!(tree.longest(&[1, 2, 3]), Match::default());
    assert_eq!((tree.held(7), tree.exclusive(7), tree.tokens()), (0, 0, 0));
    tree.check_integrity().unwrap();
}

#[test]
fn a_shared_system_prompt_is_found_with_all_its_holders() {
    let tree = tree_of(&[&[1, 2, 3, 10, 11], &[1, 2, 3, 20], &[9]]);
    assert_eq!(longest(&tree, &[1, 2, 3, 30]), (3, vec![0, 1]), "both hold the system prompt");
    assert_eq!(longest(&tree, &[1, 2, 3, 10, 99]), (4, vec![0]), "one of them holds more");
    assert_eq!(longest(&tree, &[8]), (0, vec![]), "nobody holds nothing");
    assert_eq!(tree.tokens(), 3 + 2 + 1 + 1);
}

#[test]
fn a_match_may_end_inside_a_run() {
    let tree = tree_of(&[&[1, 2, 3, 4, 5], &[1, 2]]);
    assert_eq!(nodes(&tree), 1, "nothing parts here");
    assert_eq!(longest(&tree, &[1, 2]), (2, vec![0, 1]));
    assert_eq!(longest(&tree, &[1, 2, 3, 9]), (3, vec![0]), "sequence 1 does not reach so far");
}

#[test]
fn the_prompt_may_be_shorter_than_what_is_held() {
    let tree = tree_of(&[&[1, 2, 3, 4], &[1, 2, 3, 5]]);
    assert_eq!(longest(&tree, &[1]), (1, vec![0, 1]));
    assert_eq!(longest(&tree, &[]), (0, vec![]));
}

#[test]
fn sequences_that_generate_the_same_share_it_until_they_part() {
    let mut tree = tree_of(&[&[1, 2], &[1, 2]]);
    for token in 3..100 {
        tree.extend(0, &[token]);
        tree.extend(1, &[token]);
    }
    assert_eq!((tree.tokens(), nodes(&tree)), (99, 1));
    tree.extend(0, &[500]);
    assert_eq!((tree.exclusive(0), tree.exclusive(1)), (1, 0));
    tree.extend(1, &[600]);
    tree.check_integrity().unwrap();
    assert_eq!((tree.tokens(), nodes(&tree)), (101, 3));
    assert_eq!((tree.exclusive(0), tree.exclusive(1)), (1, 1));
}

#[test]
fn generation_into_a_run_of_its_own_rarely_allocates() {
    let mut tree = tree_of(&[&[1, 2, 3], &[1, 2, 4]]);
    let node = tree.place(0).node;
    let mut growths = 0;
    for token in 0..10_000 {
        let capacity = tree.nodes[node].tokens.capacity();
        tree.extend(0, &[token]);
        growths += usize::from(tree.nodes[node].tokens.capacity() != capacity);
    }
    assert_eq!(tree.place(0).node, node);
    assert!(growths < 20, "{growths} growths");
}

#[test]
fn removal_frees_what_nobody_else_holds_and_joins_the_rest() {
    let mut tree = tree_of(&[&[1, 2, 3, 4], &[1, 2, 5, 6, 7], &[1, 2, 3, 8]]);
    assert_eq!((tree.tokens(), nodes(&tree)), (8, 5));
    let (before, freed) = (tree.tokens(), tree.exclusive(1));
    tree.truncate(1, 0);
    tree.check_integrity().unwrap();
    assert_eq!((freed, tree.tokens()), (3, before - 3));
    assert_eq!(nodes(&tree), 3, "1 2 and 3 are one run again");
    assert_eq!(longest(&tree, &[1, 2, 5]), (2, vec![0, 2]));
    tree.truncate(0, 0);
    tree.truncate(2, 0);
    tree.check_integrity().unwrap();
    assert_eq!((tree.tokens(), nodes(&tree)), (0, 0));
}

#[test]
fn a_cut_keeps_the_beginning() {
    let mut tree = tree_of(&[&[1, 2, 3, 4, 5], &[1, 2, 9]]);
    tree.truncate(0, 9);
    assert_eq!(tree.held(0), 5, "it is no longer than that");
    tree.truncate(0, 4);
    assert_eq!(longest(&tree, &[1, 2, 3, 4, 5]), (4, vec![0]));
    tree.truncate(0, 1);
    tree.check_integrity().unwrap();
    assert_eq!((tree.held(0), tree.tokens()), (1, 3), "what sequence 1 holds stays");
    assert_eq!(longest(&tree, &[1, 2]), (2, vec![1]));
}

#[test]
fn a_short_rest_of_a_long_sequence_does_not_keep_its_memory() {
    let mut tree = PrefixTree::new();
    tree.extend(0, &vec![7; 100_000]);
    tree.truncate(0, 10);
    assert!(tree.nodes[tree.place(0).node].tokens.capacity() < 100);
}

#[test]
fn a_rename_moves_everything_and_gives_up_what_was_there() {
    let mut tree = tree_of(&[&[1, 2, 3], &[4, 5]]);
    tree.rename(0, 200);
    assert_eq!((tree.held(0), tree.held(200)), (0, 3));
    assert_eq!(longest(&tree, &[1, 2, 3]), (3, vec![200]));
    tree.rename(200, 200);
    assert_eq!(tree.held(200), 3);
    tree.rename(200, 1);
    tree.check_integrity().unwrap();
    assert_eq!(longest(&tree, &[4, 5]), (0, vec![]));
    tree.rename(0, 1);
    tree.check_integrity().unwrap();
    assert_eq!(tree.tokens(), 0);
}

#[test]
fn siblings_are_told_apart_whatever_their_first_tokens_are() {
    // What a hash would confuse: equal low bits, equal high bits, extremes, neighbours; and equal tokens
    // everywhere but in one place.
    let firsts: Vec<Token> = (0..31)
        .flat_map(|bit| [1 << bit, -(1 << bit), (1 << bit) ^ 0x5555_5555])
        .chain([0, Token::MIN, Token::MAX])
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let prompts: Vec<Vec<Token>> =
        firsts.iter().map(|&first| [vec![3; 70], vec![first], vec![3; 70]].concat()).collect();
    let mut tree = PrefixTree::new();
    for (sequence, prompt) in prompts.iter().enumerate() {
        tree.extend(sequence as SequenceId, prompt);
        tree.check_integrity().unwrap();
    }
    for (sequence, prompt) in prompts.iter().enumerate() {
        assert_eq!(longest(&tree, prompt), (141, vec![sequence as SequenceId]));
        assert_eq!(tree.exclusive(sequence as SequenceId), 71);
    }
    assert_eq!(tree.longest(&[vec![3; 70], vec![12_345]].concat()).holders.len(), prompts.len());
}

#[test]
fn damage_is_found_and_named() {
    type Damage = fn(&mut PrefixTree);
    let cases: [(Damage, &str); 14] = [
        (|tree| tree.nodes[ROOT].tokens.push(1), "the root holds tokens, or a sequence ends there"),
        (|tree| tree.nodes[ROOT].children[0].1 = 99, "node 0 lists 99, which does not exist"),
        (|tree| tree.nodes[2].start = 1, "node 2 does not continue node 1, which lists it"),
        (|tree| tree.nodes[2].tokens[0] = 8, "node 2 does not begin with token 3, its key"),
        (|tree| tree.nodes[1].children.swap(0, 1), "the children of node 1 are not in order"),
        (|tree| tree.nodes[2].tokens.push(5), "nobody holds the last tokens of node 2"),
        (|tree| tree.nodes[1].children.truncate(1), "node 1 and its only child are one"),
        (|tree| tree.nodes[2].ends.push(1), "sequence 1 does not end in node 2, which lists it"),
        (|tree| tree.nodes[2].ends.push(0), "node 2 lists sequence 0 twice"),
        (|tree| tree.places.push(Place { node: 2, held: 3 }), "no node lists the end of sequence 2"),
        (|tree| tree.free.push(2), "node 2 is free and in use, or free twice"),
        (|tree| tree.nodes[1].children[1].1 = 2, "node 2 is reached twice"),
        (
            |tree| {
                tree.nodes.push(Node { ends: vec![1], ..Node::default() });
                tree.free.push(4);
            },
            "node 4 is free, and keeps memory",
        ),
        (|tree| tree.nodes.push(Node::default()), "node 4 is neither in the tree nor free"),
    ];
    let sound = tree_of(&[&[1, 2, 3], &[1, 2, 4]]);
    for (damage, words) in cases {
        let mut tree = sound.clone();
        damage(&mut tree);
        assert_eq!(tree.check_integrity().unwrap_err(), words);
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Extend(SequenceId, Vec<Token>),
    /// Appends what another sequence holds, so that long runs are walked again.
    Repeat(SequenceId, SequenceId),
    Truncate(SequenceId, usize),
    Rename(SequenceId, SequenceId),
    Longest(Vec<Token>),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    // Few sequences and fewer tokens, so that everything meets everything.
    let sequence = || 0..7_u32;
    let tokens = |most| prop::collection::vec(0..3_i32, 0..most);
    let one = prop_oneof![
        4 => (sequence(), tokens(6)).prop_map(|(sequence, tokens)| Operation::Extend(sequence, tokens)),
        3 => (sequence(), 0..3_i32).prop_map(|(sequence, token)| Operation::Extend(sequence, vec![token])),
        1 => (sequence(), sequence()).prop_map(|(sequence, of)| Operation::Repeat(sequence, of)),
        3 => (sequence(), 0..12_usize).prop_map(|(sequence, len)| Operation::Truncate(sequence, len)),
        1 => (sequence(), sequence()).prop_map(|(from, to)| Operation::Rename(from, to)),
        3 => tokens(12).prop_map(Operation::Longest),
    ];
    prop::collection::vec(one, 1..300)
}

fn common(left: &[Token], right: &[Token]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// What the tree says, said without a tree.
#[derive(Default)]
struct Model(HashMap<SequenceId, Vec<Token>>);

impl Model {
    fn held(&self, sequence: SequenceId) -> &[Token] {
        self.0.get(&sequence).map_or(&[], Vec::as_slice)
    }

    fn longest(&self, tokens: &[Token]) -> (usize, Vec<SequenceId>) {
        let length = self.0.values().map(|held| common(held, tokens)).max().unwrap_or(0);
        let holds = |(&sequence, held): (&SequenceId, &Vec<Token>)| {
            (length > 0 && common(held, tokens) == length).then_some(sequence)
        };
        let mut holders: Vec<_> = self.0.iter().filter_map(holds).collect();
        holders.sort_unstable();
        (length, holders)
    }

    /// Tokens of one sequence that none of the `others` holds at the same place.
    fn alone(&self, sequence: SequenceId, others: impl Iterator<Item = SequenceId>) -> usize {
        let held = self.held(sequence);
        let shared = others.map(|other| common(held, self.held(other))).max().unwrap_or(0);
        held.len() - shared
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Extend(sequence, tokens) => self.0.entry(*sequence).or_default().extend(tokens),
            Operation::Repeat(sequence, of) => {
                let tokens = self.held(*of).to_vec();
                self.0.entry(*sequence).or_default().extend(tokens);
            }
            Operation::Truncate(sequence, len) => {
                self.0.entry(*sequence).or_default().truncate(*len);
            }
            Operation::Rename(from, to) => {
                let tokens = self.0.remove(from).unwrap_or_default();
                self.0.insert(*to, tokens);
            }
            Operation::Longest(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_that_of_a_plain_list(operations in operations()) {
        let mut tree = PrefixTree::new();
        let mut model = Model::default();
        for operation in &operations {
            match operation {
                Operation::Extend(sequence, tokens) => tree.extend(*sequence, tokens),
                Operation::Repeat(sequence, of) => tree.extend(*sequence, model.held(*of)),
                Operation::Truncate(sequence, len) => tree.truncate(*sequence, *len),
                Operation::Rename(from, to) => tree.rename(*from, *to),
                Operation::Longest(tokens) => prop_assert_eq!(longest(&tree, tokens), model.longest(tokens)),
            }
            // Repetition doubles: keep sequences short enough for the plain list.
            model.apply(operation);
            for sequence in 0..7 {
                if model.held(sequence).len() > 40 {
                    tree.truncate(sequence, 40);
                    model.apply(&Operation::Truncate(sequence, 40));
                }
            }
            prop_assert_eq!(tree.check_integrity(), Ok(()));
            // Each counts what none before it holds.
            let all: usize = (0..7).map(|sequence| model.alone(sequence, 0..sequence)).sum();
            prop_assert_eq!(tree.tokens(), all);
            for sequence in 0..7 {
                let held = model.held(sequence);
                prop_assert_eq!(tree.held(sequence), held.len());
                prop_assert_eq!(longest(&tree, held), model.longest(held));
                let others = (0..7).filter(|&other| other != sequence);
                prop_assert_eq!(tree.exclusive(sequence), model.alone(sequence, others));
            }
        }
        for sequence in 0..7 {
            tree.truncate(sequence, 0);
            prop_assert_eq!(tree.check_integrity(), Ok(()));
        }
        prop_assert_eq!((tree.tokens(), nodes(&tree)), (0, 0));
    }
}
