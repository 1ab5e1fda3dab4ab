//! `when`: a CEL expression, compiled once, opaque to analysis, run last.
//!
//! The CEL crate has no cost limit, so cost is bounded before anything runs: comprehensions (`all`, `exists`,
//! `map`, `filter`) are refused, as are regular expressions, and length, depth and number of operations are
//! capped. What remains is a fixed number of steps over values that the caller bounds.

use std::fmt;
use std::sync::{Arc, OnceLock};

use cel::common::ast::{EntryExpr, Expr};
use cel::{Context, Env, IdedExpr, Program, Value};
use serde::Serialize;

/// Longest expression, in bytes.
pub const MAX_LENGTH: usize = 1024;
/// Deepest nesting of the expression and of its brackets.
pub const MAX_DEPTH: usize = 24;
/// Most operations.
pub const MAX_OPERATIONS: usize = 256;

/// Names an expression may use.
const VARIABLES: [&str; 4] = ["request", "jwt", "source", "destination"];
/// Functions an expression may call, besides the operators.
const FUNCTIONS: [&str; 8] = ["size", "contains", "startsWith", "endsWith", "int", "uint", "string", "double"];
/// The operators, as the syntax tree names them.
const OPERATORS: [&str; 18] = [
    "_?_:_", "_&&_", "_||_", "!_", "_-_", "_+_", "_*_", "_/_", "_%_", "_==_", "_!=_", "_>=_", "_<=_", "_>_", "_<_",
    "-_", "_[_]", "@in",
];

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGuard {
    /// Over [`MAX_LENGTH`].
    #[error("the expression has {0} bytes; the limit is {MAX_LENGTH}")]
    TooLong(usize),
    /// Over [`MAX_DEPTH`].
    #[error("the expression nests deeper than {MAX_DEPTH}")]
    TooDeep,
    /// Over [`MAX_OPERATIONS`].
    #[error("the expression has more than {MAX_OPERATIONS} operations")]
    TooLarge,
    /// Not CEL.
    #[error("not a CEL expression: {0}")]
    Syntax(String),
    /// `all`, `exists`, `exists_one`, `map` or `filter`.
    #[error("comprehensions (all, exists, exists_one, map, filter) are refused: their cost has no bound")]
    Comprehension,
    /// A message literal.
    #[error("message literals are refused")]
    Message,
    /// A name that is not there.
    #[error("there is no `{0}`; use request, jwt, source or destination")]
    Variable(String),
    /// A function that is not there.
    #[error(
        "there is no function `{0}`; use size, contains, startsWith, endsWith, int, uint, double, string, has or in"
    )]
    Function(String),
}

/// A compiled expression.
#[derive(Clone)]
pub struct Guard {
    text: Arc<str>,
    program: Arc<Program>,
}

/// The expression could not be evaluated, or gave something else than true or false.
///
/// In an allow that is no match, in a deny it denies, in a require it refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GuardError(pub String);

/// What an expression sees.
#[derive(Debug, Serialize)]
pub struct Facts<'a, R: Serialize, J: Serialize> {
    /// `request`
    pub request: R,
    /// `jwt`; absent without a token, and then naming it is an error.
    pub jwt: Option<J>,
    /// `source`
    pub source: Party<'a>,
    /// `destination`
    pub destination: Party<'a>,
}

/// A workload as an expression sees it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Party<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name in the namespace.
    pub name: &'a str,
}

impl Guard {
    /// Compiles and bounds an expression.
    pub fn compile(text: &str) -> Result<Self, InvalidGuard> {
        if text.len() > MAX_LENGTH {
            return Err(InvalidGuard::TooLong(text.len()));
        }
        // The parser recurses: brackets are counted before it sees the text. Quoted brackets count too,
        // which is harmless at this limit.
        let mut open = 0_usize;
        for byte in text.bytes() {
            match byte {
                b'(' | b'[' | b'{' => open += 1,
                b')' | b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
            if open > MAX_DEPTH {
                return Err(InvalidGuard::TooDeep);
            }
        }
        // Chains of prefix and ternary operators nest without brackets.
        if text.bytes().filter(|byte| matches!(byte, b'!' | b'-' | b'?')).count() > MAX_DEPTH {
            return Err(InvalidGuard::TooDeep);
        }
        let program = environment().compile(text).map_err(|errors| {
            let first = errors.errors.first().map(|error| error.msg.clone()).unwrap_or_default();
            InvalidGuard::Syntax(first.chars().take(200).collect())
        })?;
        let mut operations = 0;
        bound(program.expression(), 0, &mut operations)?;
        let references = program.references();
        if let Some(name) = references.variables().into_iter().find(|name| !VARIABLES.contains(name)) {
            return Err(InvalidGuard::Variable(name.to_owned()));
        }
        let known = |name: &str| OPERATORS.contains(&name) || FUNCTIONS.contains(&name);
        if let Some(name) = references.functions().into_iter().find(|name| !known(name)) {
            return Err(InvalidGuard::Function(name.to_owned()));
        }
        Ok(Self { text: text.into(), program: Arc::new(program) })
    }

    /// The expression as written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it holds for these facts.
    pub fn holds<R: Serialize, J: Serialize>(&self, facts: &Facts<'_, R, J>) -> Result<bool, GuardError> {
        let mut context = Context::with_env(environment());
        let failed = |error: &dyn fmt::Display| GuardError(error.to_string());
        context.add_variable_from_value("request", cel::to_value(&facts.request).map_err(|error| failed(&error))?);
        context.add_variable_from_value("source", cel::to_value(facts.source).map_err(|error| failed(&error))?);
        let destination = cel::to_value(facts.destination).map_err(|error| failed(&error))?;
        context.add_variable_from_value("destination", destination);
        if let Some(jwt) = &facts.jwt {
            context.add_variable_from_value("jwt", cel::to_value(jwt).map_err(|error| failed(&error))?);
        }
        match self.program.execute(&context) {
            Ok(Value::Bool(value)) => Ok(value),
            Ok(other) => Err(GuardError(format!("gives {} instead of true or false", other.type_of()))),
            Err(error) => Err(GuardError(error.to_string())),
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.text).finish()
    }
}

impl PartialEq for Guard {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Guard {}

/// The one environment, built once: building it costs more than evaluating an expression.
fn environment() -> Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    Arc::clone(ENVIRONMENT.get_or_init(|| Arc::new(Env::stdlib())))
}

fn bound(expression: &IdedExpr, depth: usize, operations: &mut usize) -> Result<(), InvalidGuard> {
    *operations += 1;
    if depth > MAX_DEPTH {
        return Err(InvalidGuard::TooDeep);
    }
    if *operations > MAX_OPERATIONS {
        return Err(InvalidGuard::TooLarge);
    }
    let mut below = |child: &IdedExpr| bound(child, depth + 1, operations);
    match &expression.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Ok(()),
        Expr::Comprehension(_) => Err(InvalidGuard::Comprehension),
        Expr::Struct(_) => Err(InvalidGuard::Message),
        Expr::Call(call) => {
            if let Some(target) = &call.target {
                below(target)?;
            }
            call.args.iter().try_for_each(below)
        }
        Expr::List(list) => list.elements.iter().try_for_each(below),
        Expr::Select(select) => below(&select.operand),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
            EntryExpr::StructField(field) => below(&field.value),
            EntryExpr::MapEntry(entry) => {
                below(&entry.key)?;
                below(&entry.value)
            }
        }),
    }
}

#[cfg(test)]
mod tests;
