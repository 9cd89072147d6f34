variable "name" {
  type = string
}

variable "region" {
  type = string
}

variable "zones" {
  description = "How many zones the region has."
  type        = number
}

variable "subnetwork" {
  type = string
}

variable "account" {
  description = "E-mail of the worker's account."
  type        = string
}

variable "image" {
  description = "The worker's image without its tag."
  type        = string

  validation {
    condition     = !can(regex(":[^/]*$", var.image))
    error_message = "The tag is worker_version."
  }
}

variable "worker_version" {
  description = "Tag that machines begin with until the first deployment."
  type        = string

  validation {
    condition     = var.worker_version != "latest" && can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", var.worker_version))
    error_message = "Name a version; `latest` cannot be rolled back."
  }
}

variable "queue" {
  description = "The one queue of these workers, as in config/models.yaml."
  type        = string
}

variable "grace" {
  description = "WORKER_GRACE: a running job may still take this long when its worker must go."
  type        = number
  default     = 240
}

variable "model_memory" {
  type    = number
  default = 0
}

variable "worker_max_memory" {
  description = "WORKER_MAX_MEMORY, in bytes: models that leak are loaded afresh between two jobs. 0: never."
  type        = number
  default     = 0
}

variable "settings" {
  description = "Settings of config/README.md beyond those that have a variable here, the same as the web tier's: UPLOAD_MAX_BYTES, say."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name, value in var.settings : can(regex("^[A-Z][A-Z0-9_]*$", name)) && !strcontains(value, "\n")])
    error_message = "Each is NAME = \"value\", in one line."
  }
  validation {
    condition     = length(setintersection(keys(var.settings), ["API_KEYS_FILE", "BROKER_URL", "HF_TOKEN", "REDIS_URL", "SIGNING_KEY", "WEBHOOK_SECRET"])) == 0
    error_message = "Secrets are in Secret Manager; a machine's settings can be read by everybody on it."
  }
  validation {
    condition     = contains(["DEBUG", "INFO"], lookup(var.settings, "LOG_LEVEL", "INFO"))
    error_message = "darkroom-deploy waits for a line of the level INFO, by which a worker says that it is ready."
  }
}

variable "catalogue" {
  description = "The catalogue of models as YAML text, as the web tier has it; empty: the one in the image."
  type        = string
  default     = ""
}

variable "hub_token" {
  description = "Whether the secret PREFIX-hub-token holds a token of the Hugging Face hub, for models whose licence asks for one."
  type        = bool
  default     = false
}

variable "secret_prefix" {
  description = "Secrets are PREFIX-broker-url, PREFIX-redis-url, PREFIX-ca, PREFIX-redis-ca."
  type        = string
}

variable "storage_url" {
  type = string

  validation {
    condition     = startswith(var.storage_url, "gs://")
    error_message = "A machine of its own shares only a bucket with the web tier."
  }
}

variable "result_ttl" {
  type = number
}

variable "machine_type" {
  type    = string
  default = "n1-standard-8"
}

variable "gpu_type" {
  type    = string
  default = "nvidia-tesla-t4"
}

variable "gpus" {
  description = "GPUs of one machine; each has a worker."
  type        = number
  default     = 1

  validation {
    condition     = contains([1, 2, 4, 8], var.gpus)
    error_message = "A machine has 1, 2, 4 or 8 GPUs."
  }
}

variable "boot_image" {
  description = "With NVIDIA's driver (torch with CUDA 13 wants 580), its container toolkit, Docker and gcloud."
  type        = string
  default     = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
}

variable "secure_boot" {
  description = "Off where the driver's module is not signed."
  type        = bool
  default     = false
}

variable "disk_gb" {
  type    = number
  default = 100
}

variable "spot" {
  description = "Cheaper machines that Google may take back: their jobs go to others."
  type        = bool
  default     = false
}

variable "machines" {
  type = object({
    min = number
    max = number
  })

  validation {
    condition     = var.machines.min >= 1 && var.machines.min <= var.machines.max
    error_message = "machines.min is at least 1 and not above machines.max."
  }
}

variable "queue_metric" {
  description = "Jobs in a queue, waiting and running, in Cloud Monitoring (managed collection of RabbitMQ's numbers)."
  type        = string
  default     = "prometheus.googleapis.com/rabbitmq_queue_messages/gauge"
}

variable "jobs_per_gpu" {
  type    = number
  default = 4
}

variable "first_start_seconds" {
  type    = number
  default = 900
}

variable "traces" {
  description = "Jaeger as machines reach it (host:4317); empty: no traces."
  type        = string
  default     = ""
}

variable "elasticsearch" {
  description = "Elasticsearch as machines reach it, with the secret PREFIX-elasticsearch-api-key; empty: logs stay on the machine."
  type        = string
  default     = ""
}

variable "helper_images" {
  type = map(string)
  default = {
    node-exporter = "quay.io/prometheus/node-exporter:v1.9.1"
    dcgm          = "nvcr.io/nvidia/k8s/dcgm-exporter:4.2.3-4.1.3-ubuntu22.04"
    collector     = "docker.io/otel/opentelemetry-collector:0.128.0"
    filebeat      = "docker.elastic.co/beats/filebeat:8.18.4"
  }
}
