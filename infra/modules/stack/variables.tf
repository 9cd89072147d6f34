variable "project" {
  description = "Google Cloud's project."
  type        = string
}

variable "name" {
  description = "Of the deployment: everything is named after it."
  type        = string
  default     = "darkroom"
}

variable "region" {
  type = string
}

variable "ranges" {
  type    = map(string)
  default = {}
}

variable "domain" {
  type = string
}

variable "host" {
  type = string
}

variable "images" {
  description = "Docker Hub's account and the beginning of both images' names, ACCOUNT/darkroom."
  type        = string
}

variable "worker_version" {
  type = string
}

variable "default_model" {
  description = "DEFAULT_MODEL_VERSION: what is asked for without a model. On the workers' queue, since the catalogue's first has no worker here."
  type        = string
}

variable "settings" {
  description = "Settings of config/README.md for all roles, like `{ UPLOAD_MAX_BYTES = \"50000000\" }`; no secrets."
  type        = map(string)
  default     = {}
}

variable "catalogue" {
  description = "The catalogue of models as YAML text, `file(\"models.yaml\")`; empty: the one in the images."
  type        = string
  default     = ""
}

variable "hub_token" {
  description = "Make the secret NAME-hub-token, for models whose licence asks for a token of the Hugging Face hub."
  type        = bool
  default     = false
}

variable "result_ttl" {
  description = "RESULT_TTL: records and pictures are kept this long."
  type        = number
  default     = 604800
}

variable "admin_ranges" {
  type = map(string)
}

variable "ssh_ranges" {
  type    = list(string)
  default = []
}

variable "deployer" {
  description = "Who deploys, like `serviceAccount:jenkins@my-project.iam.gserviceaccount.com`; empty: its rights are given elsewhere."
  type        = string
  default     = ""
}

variable "nodes" {
  type = object({
    machine_type = string
    min          = number
    max          = number
  })
}

variable "redis" {
  type = object({
    memory_gb        = number
    highly_available = bool
  })
}

variable "workers" {
  type = object({
    queue        = string
    machine_type = string
    gpu_type     = string
    gpus         = number
    spot         = bool
    min          = number
    max          = number
  })
}

variable "traces" {
  description = "Jaeger as the worker machines reach it (host:4317); empty: no traces of theirs."
  type        = string
  default     = ""
}

variable "elasticsearch" {
  description = "Elasticsearch as the worker machines reach it; empty: their logs stay with them."
  type        = string
  default     = ""
}

variable "protect" {
  description = "The cluster and the pictures cannot be destroyed by a mere `terraform destroy`."
  type        = bool
  default     = true
}
