//! A folder of YAML to resources, with every check of the API server, offline.
//!
//! 1. Files are found ([`load`] walks folders) and cut into documents (`yaml`).
//! 2. Each document is checked as the API server would ([`check`]), in sentences (`sentence`).
//! 3. What passed becomes a resource; what did not becomes a [`FileProblem`] and costs the others nothing.
//! 4. [`Loaded::resolve`] goes on to the checks across documents, and names the lines of what they find.

pub mod check;
mod sentence;
mod yaml;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
};

use corrente_crds::{MeterPoller, MeterPollerSpec, MeterProfile, TelemetryPipeline};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    PipelineConfig, Problem,
    conflict::{Owner, conflicts},
    resolve::{ResolvedPoller, resolve_pipeline, resolve_poller},
};
use check::Checker;
pub use sentence::closest;
use yaml::{Node, documents};

/// What the files hold.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The MeterProfiles, by name.
    pub profiles: BTreeMap<String, MeterProfile>,
    /// The MeterPollers, in the order of the files. Each has a namespace, `default` where it gave none.
    pub pollers: Vec<MeterPoller>,
    /// The TelemetryPipelines, likewise.
    pub pipelines: Vec<TelemetryPipeline>,
    /// How many documents are of other groups, such as Secrets: they are left alone.
    pub others: usize,
    /// What is wrong, in the order of the files.
    pub problems: Vec<FileProblem>,
    sources: BTreeMap<Key, Source>,
    /// MeterProfiles that are there, but wrong.
    refused_profiles: BTreeSet<String>,
}

/// What the resources become, and what is wrong with them together.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// The MeterPollers that are right, in the order of the files. In local use the order is their age.
    pub pollers: Vec<ResolvedPoller>,
    /// The TelemetryPipelines that are right.
    pub pipelines: Vec<PipelineConfig>,
    /// What is wrong with the others.
    pub problems: Vec<FileProblem>,
}

/// Something wrong in a file. It displays as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProblem {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 where it is about the file itself.
    pub line: usize,
    /// The kind and the name of the resource, as far as they are known: `MeterPoller "site-1"`.
    pub resource: Option<String>,
    /// What is wrong, and where in the document.
    pub problem: Problem,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        if let Some(resource) = &self.resource {
            write!(f, " {resource}:")?;
        }
        write!(f, " {}", self.problem)
    }
}

/// Kind, namespace (empty for a MeterProfile) and name.
type Key = (String, String, String);

#[derive(Clone, Debug)]
struct Source {
    file: PathBuf,
    node: Node,
}

/// Reads files and folders, folders with all that is below them: `*.yaml`, `*.yml` and `*.json`, of one or
/// several documents each. The order is that of `paths`, within a folder that of the names.
#[must_use]
pub fn load(paths: &[PathBuf]) -> Loaded {
    let mut loaded = Loaded::default();
    let checker = match Checker::new() {
        Ok(checker) => checker,
        Err(error) => {
            loaded.file_problem(Path::new(""), error.to_string());
            return loaded;
        }
    };
    let mut files = Vec::new();
    for path in paths {
        if let Err(error) = find(path, &mut files) {
            loaded.file_problem(path, format!("failed to read it: {error}"));
        }
    }
    let mut seen = BTreeSet::new();
    for file in files {
        // A file given by itself and by its folder is one file.
        if !seen.insert(fs::canonicalize(&file).unwrap_or_else(|_| file.clone())) {
            continue;
        }
        match fs::read_to_string(&file) {
            Ok(text) => loaded.read(&file, &text, &checker),
            Err(error) => loaded.file_problem(&file, format!("failed to read it: {error}")),
        }
    }
    loaded
}

fn find(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    entries.sort();
    for entry in entries {
        let is_manifest = entry
            .extension()
            .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known));
        if is_manifest || entry.is_dir() {
            find(&entry, files)?;
        }
    }
    Ok(())
}

impl Loaded {
    /// Adds the documents of texts as if files of those names held them.
    pub fn add<'a>(&mut self, texts: impl IntoIterator<Item = (PathBuf, &'a str)>) {
        let mut texts = texts.into_iter().peekable();
        // Compiling the schemas takes longer than checking by them: once for all texts, and not for none.
        let Some((first, _)) = texts.peek() else { return };
        match Checker::new() {
            Ok(checker) => texts.for_each(|(file, text)| self.read(&file, text, &checker)),
            Err(error) => self.file_problem(&first.clone(), error.to_string()),
        }
    }

    fn file_problem(&mut self, file: &Path, message: String) {
        self.problems.push(FileProblem {
            file: file.to_owned(),
            line: 0,
            resource: None,
            problem: Problem::new("", message),
        });
    }

    fn read(&mut self, file: &Path, text: &str, checker: &Checker) {
        for document in documents(text) {
            match Node::read(document) {
                Ok(node) => self.take(file, node, checker),
                Err(error) => self.problems.push(FileProblem {
                    file: file.to_owned(),
                    line: error.line,
                    resource: None,
                    problem: Problem::new("", format!("this is not YAML: {}", error.message)),
                }),
            }
        }
    }

    fn take(&mut self, file: &Path, node: Node, checker: &Checker) {
        let value = node.value();
        if value["kind"] == "List" && value["apiVersion"] == "v1" {
            let items = node.field("items").map(Node::items).unwrap_or_default();
            for item in items {
                self.take(file, item.clone(), checker);
            }
            return;
        }
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let resource = (!kind.is_empty()).then(|| format!("{kind} {name:?}"));
        let mut problems = Vec::new();
        if kind.is_empty() || text("/apiVersion").is_empty() {
            let message = "this is no resource of Kubernetes: write apiVersion and kind";
            problems.push(Problem::new("", message));
        } else {
            match checker.check(&value) {
                None => self.others += 1,
                Some(found) if found.is_empty() => {
                    problems.extend(self.keep(file, &node, kind, value.clone()).err());
                }
                Some(found) => {
                    if kind == "MeterProfile" {
                        self.refused_profiles.insert(name.to_owned());
                    }
                    problems = found;
                }
            }
        }
        let mut problems: Vec<FileProblem> = problems
            .into_iter()
            .map(|problem| FileProblem {
                file: file.to_owned(),
                line: node.line_of(&problem.path),
                resource: resource.clone(),
                problem,
            })
            .collect();
        problems.sort_by_key(|problem| problem.line);
        self.problems.append(&mut problems);
    }

    /// Keeps a document that has passed the checks by itself.
    fn keep(&mut self, file: &Path, node: &Node, kind: &str, mut value: Value) -> Result<(), Problem> {
        let namespaced = kind != "MeterProfile";
        if namespaced && value["metadata"].get("namespace").is_none() {
            value["metadata"]["namespace"] = "default".into();
        }
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (kind.to_owned(), text("namespace"), text("name"));
        if let Some(first) = self.sources.get(&key) {
            let place = format!("{}:{}", first.file.display(), first.node.line);
            let message = format!("{place} has this name already: give one of the two another name");
            return Err(Problem::new("metadata.name", message));
        }
        match kind {
            "MeterProfile" => {
                self.profiles.insert(key.2.clone(), typed(value)?);
            }
            "MeterPoller" => self.pollers.push(typed(value)?),
            _ => self.pipelines.push(typed(value)?),
        }
        let source = Source {
            file: file.to_owned(),
            node: node.clone(),
        };
        self.sources.insert(key, source);
        Ok(())
    }

    /// Names the file and the line of a problem with a resource.
    #[must_use]
    pub fn locate(&self, kind: &str, namespace: &str, name: &str, problem: Problem) -> FileProblem {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let source = self.sources.get(&key);
        FileProblem {
            file: source.map(|source| source.file.clone()).unwrap_or_default(),
            line: source.map_or(0, |source| source.node.line_of(&problem.path)),
            resource: Some(format!("{kind} {name:?}")),
            problem,
        }
    }

    /// Makes every check that needs a look at several documents, and gives what the workers are to be told.
    #[must_use]
    pub fn resolve(&self) -> Resolved {
        let mut resolved = Resolved::default();
        let profiles = self
            .profiles
            .iter()
            .map(|(name, profile)| (name.clone(), profile.spec.clone()))
            .collect();
        let (owners, specs): (Vec<_>, Vec<_>) = (0_i64..)
            .zip(&self.pollers)
            .map(|(age, poller)| {
                let (namespace, name) = (namespace(&poller.metadata.namespace), text(&poller.metadata.name));
                let owner = Owner {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    created: age,
                    spec: &poller.spec,
                };
                (owner, (namespace, name, poller.spec.clone()))
            })
            .unzip();
        let conflicts = conflicts(&owners);
        for (namespace, name, spec) in &specs {
            let mut problems: Vec<Problem> = conflicts
                .get(&(namespace.clone(), name.clone()))
                .into_iter()
                .flatten()
                .map(|conflict| conflict.problem())
                .collect();
            match resolve_poller(namespace, name, spec, &profiles) {
                Ok(poller) if problems.is_empty() => resolved.pollers.push(poller),
                Ok(_) => {}
                Err(found) => problems.extend(self.after_refused_profiles(spec, found)),
            }
            let located = problems
                .into_iter()
                .map(|problem| self.locate("MeterPoller", namespace, name, problem));
            resolved.problems.extend(located);
        }
        for pipeline in &self.pipelines {
            let (namespace, name) = (
                namespace(&pipeline.metadata.namespace),
                text(&pipeline.metadata.name),
            );
            match resolve_pipeline(&namespace, &name, &pipeline.spec, &specs, &profiles) {
                Ok(pipeline) => resolved.pipelines.push(pipeline),
                Err(found) => resolved.problems.extend(
                    found
                        .into_iter()
                        .map(|problem| self.locate("TelemetryPipeline", &namespace, &name, problem)),
                ),
            }
        }
        resolved
    }
}

impl Loaded {
    /// A profile that is wrong itself is not missing: the problem with it is told already.
    fn after_refused_profiles(&self, spec: &MeterPollerSpec, mut problems: Vec<Problem>) -> Vec<Problem> {
        for (path, meter) in crate::resolve::meters(spec) {
            let refused = meter
                .profile
                .as_ref()
                .filter(|p| self.refused_profiles.contains(*p));
            let (Some(profile), path) = (refused, format!("{path}.profile")) else {
                continue;
            };
            for problem in problems.iter_mut().filter(|problem| problem.path == path) {
                problem.message = format!("MeterProfile {profile:?} is refused itself: correct it first");
            }
        }
        problems
    }
}

fn namespace(of: &Option<String>) -> String {
    of.clone().unwrap_or_else(|| "default".to_owned())
}

fn text(of: &Option<String>) -> String {
    of.clone().unwrap_or_default()
}

/// The last step: what the checks passed has the shape of the type, so that a failure here is a gap in them.
fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| Problem::new(error.path().to_string(), error.inner().to_string()))
}
