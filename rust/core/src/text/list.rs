//! Python's list for chat templates: one that changes. minijinja's do not.
//!
//! Only where a template asks for it: `[]` becomes such a list in sources that call `append`.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Enumerator, Object, ObjectRepr, from_args},
};

/// The function that makes one.
pub(super) const NAME: &str = "__list__";

#[derive(Debug, Default)]
pub(super) struct List(Mutex<Vec<Value>>);

impl List {
    pub(super) fn value() -> Value {
        Value::from_object(Self::default())
    }

    fn items(&self) -> MutexGuard<'_, Vec<Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items().get(usize::try_from(key.clone()).ok()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items().clone())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match method {
            "append" => {
                let (item,): (Value,) = from_args(args)?;
                self.items().push(item);
                Ok(Value::from(()))
            }
            "pop" => {
                let (at,): (Option<i64>,) = from_args(args)?;
                let mut items = self.items();
                let length = items.len() as i64;
                let at = at.unwrap_or(-1);
                let at = if at < 0 { at + length } else { at };
                match usize::try_from(at).ok().filter(|&at| at < items.len()) {
                    Some(at) => Ok(items.remove(at)),
                    None => Err(Error::new(ErrorKind::InvalidOperation, "pop: there is no such item")),
                }
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// The source with lists that change in the places of empty ones, if it changes any.
pub(super) fn with_lists(source: &str) -> Cow<'_, str> {
    if !source.contains(".append(") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("[]") {
        let (before, behind) = rest.split_at(at);
        out.push_str(before);
        let assigned =
            before.trim_end().strip_suffix('=').is_some_and(|it| !it.ends_with(['=', '!', '<', '>']));
        out.push_str(if assigned { "__list__()" } else { "[]" });
        rest = &behind[2..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}
