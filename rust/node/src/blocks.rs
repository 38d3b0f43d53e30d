//! Answers as blocks: runs of text, of reasoning, and of a call's input.
//!
//! Owns how much of an answer is kept. Blocks follow each other and never interleave.

use llm_node_core::{
    error::{ErrorCode, Fault},
    event::{Event, Finish, Part, PickedToken},
};

/// Most bytes of text that are kept of one answer.
pub const MOST_KEPT: usize = 8 << 20;

/// A run of pieces of one part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// What it is.
    pub part: Part,
    /// All of its text, as far as it was kept.
    pub text: String,
    /// The tokens behind it, as far as they were kept.
    pub tokens: Vec<PickedToken>,
    /// The call's; empty where it is none.
    pub id: String,
    /// The called tool's; empty where it is none.
    pub name: String,
    /// Did it end by itself? Else a limit cut it off.
    pub complete: bool,
}

/// A whole answer under way.
#[derive(Debug, Default)]
pub struct Blocks {
    blocks: Vec<Block>,
    kept: Kept,
}

/// Counts what is kept of an answer.
#[derive(Debug, Default)]
pub(crate) struct Kept(usize);

impl Kept {
    /// So many bytes more, or what to say where these are too many.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), Fault> {
        self.0 += bytes;
        if self.0 <= MOST_KEPT {
            return Ok(());
        }
        let most = MOST_KEPT >> 20;
        let message = format!(
            "The answer's text has more than {most} MiB, and no more is kept to be told as a whole: \
             ask for fewer tokens, or for a stream of pieces"
        );
        Err(Fault::new(ErrorCode::RequestTooLarge, message))
    }
}

impl Blocks {
    /// Takes what an event adds.
    pub fn take(&mut self, event: Event) -> Result<(), Fault> {
        match event {
            Event::Piece(piece) => {
                self.kept.add(piece.text.len())?;
                let open = self.blocks.last_mut().filter(|it| it.part == piece.part && !it.complete);
                if let Some(block) = open {
                    block.text += &piece.text;
                    block.tokens.extend(piece.tokens);
                } else {
                    self.complete();
                    let (part, text, tokens) = (piece.part, piece.text, piece.tokens);
                    self.blocks.push(Block { part, text, tokens, ..Block::default() });
                }
            }
            Event::CallBegan { id, name, .. } => {
                self.complete();
                self.blocks.push(Block { part: Part::Input, id, name, ..Block::default() });
            }
            Event::CallEnded => self.complete(),
            Event::Started { .. } | Event::Finished { .. } | Event::Failed(_) => {}
        }
        Ok(())
    }

    /// The answer is at its end.
    pub fn end(&mut self, reason: Finish) {
        if reason.is_natural() && self.blocks.last().is_some_and(|it| it.part != Part::Input) {
            self.complete();
        }
    }

    /// All of it.
    pub fn into_blocks(self) -> Vec<Block> {
        self.blocks
    }

    fn complete(&mut self) {
        if let Some(block) = self.blocks.last_mut() {
            block.complete = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use llm_node_core::event::Piece;

    use super::*;

    fn piece(part: Part, text: &str) -> Event {
        let tokens = vec![PickedToken { id: 1, logprobs: None }];
        Event::Piece(Piece { part, text: text.to_owned(), tokens })
    }

    fn call(index: u32) -> Event {
        Event::CallBegan { index, id: format!("id{index}"), name: "f".to_owned() }
    }

    /// Part, text, tokens, id, complete.
    fn blocks(events: Vec<Event>, reason: Finish) -> Vec<(Part, String, usize, String, bool)> {
        let mut blocks = Blocks::default();
        for event in events {
            blocks.take(event).unwrap();
        }
        blocks.end(reason);
        let shown = |it: Block| (it.part, it.text, it.tokens.len(), it.id, it.complete);
        blocks.into_blocks().into_iter().map(shown).collect()
    }

    #[test]
    fn a_run_of_pieces_is_a_block() {
        use Part::{Input, Reasoning, Text};
        let events = vec![
            piece(Reasoning, "h"),
            piece(Reasoning, "m"),
            piece(Text, "a"),
            piece(Text, ""),
            call(0),
            piece(Input, "{"),
            piece(Input, "}"),
            Event::CallEnded,
            call(1),
            piece(Input, "{"),
        ];
        assert_eq!(
            blocks(events, Finish::Length),
            [
                (Reasoning, "hm".into(), 2, String::new(), true),
                (Text, "a".into(), 2, String::new(), true),
                (Input, "{}".into(), 2, "id0".into(), true),
                (Input, "{".into(), 1, "id1".into(), false),
            ]
        );
    }

    #[test]
    fn only_a_limit_leaves_text_incomplete() {
        for (reason, complete) in [
            (Finish::Stop, true),
            (Finish::StopString, true),
            (Finish::Length, false),
            (Finish::Context, false),
            (Finish::Cancelled, false),
        ] {
            assert_eq!(blocks(vec![piece(Part::Text, "a")], reason)[0].4, complete);
        }
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let mut blocks = Blocks::default();
        blocks.take(piece(Part::Text, &"a".repeat(MOST_KEPT))).unwrap();
        let fault = blocks.take(piece(Part::Text, "a")).unwrap_err();
        assert_eq!(fault.code, ErrorCode::RequestTooLarge);
    }
}
