variable "project" {
  type = string
}

variable "name" {
  type = string
}

variable "member" {
  description = "Who deploys, like `serviceAccount:jenkins@my-project.iam.gserviceaccount.com`."
  type        = string

  validation {
    condition     = can(regex("^(serviceAccount|user|group|principal|principalSet):.+", var.member))
    error_message = "One account or group that is known by its name, never everybody."
  }
}

variable "worker_account" {
  description = "Resource name of the account that the machines are."
  type        = string
}
